"""What is wrong with this installation, and what helps: `nightjar doctor`.

Looks and never changes anything, so it works before the first `nightjar up`, beside a running stack, and when things
are broken. Each check stands for itself: one that cannot even look is a failure of its own, not of the others.
"""
