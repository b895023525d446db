"""`nightjar bench quality`: how good the models of the night are, on any data in one of four forms."""
