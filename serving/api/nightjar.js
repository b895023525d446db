// Nightjar in the browser: page views, views in view, clicks and dwell, sent once, and only as far as the person allows.
// Attributes and methods: infra/docs/clients.md. Served without these lines and without indentation (snippet.py), so a
// comment has its line to itself and no text goes over two lines.
(() => {
  const MAX_QUEUED = 500, MAX_BATCH = 50, BATCH_DELAY = 2000
  // Two requests that outlive their page may be under way; browsers allow them 64 KiB together.
  const MAX_BYTES = 30000
  const LONGEST_WAIT = 3600000
  const STATE = 'nightjar', CONSENT = STATE + '.consent', QUEUE = STATE + '.queue.'
  const doc = document, early = window.nightjar
  if (early?.track) return

  const { src, dataset: own } = doc.currentScript
  const { search } = new URL(src), base = new URL('.', src).href
  // As ours on the server: 12 hex digits of the milliseconds, then 20 random ones.
  const newId = () => [...crypto.getRandomValues(new Uint8Array(10))]
    .reduce((text, byte) => text + (byte + 256).toString(16).slice(1), Date.now().toString(16).padStart(12, '0'))
  const now = () => new Date().toISOString()
  const sizeOf = event => new Blob([JSON.stringify(event)]).size

  // The browser's storage: the person's choice always, everything else only under consent.store. It may be full or
  // forbidden; then what we know lives as long as the page.
  const attempt = action => { try { return action() } catch { return null } }
  const read = key => attempt(() => JSON.parse(localStorage.getItem(key)))
  const write = (key, value) => attempt(() => localStorage.setItem(key, JSON.stringify(value)))
  const remove = key => attempt(() => localStorage.removeItem(key))
  const storedQueues = () => attempt(() => Object.keys(localStorage).filter(key => key.startsWith(QUEUE))) || []

  // The choice has a key of its own: a page that has not heard of a new one must not write the old one back.
  let choice = read(CONSENT)
  // anonymous (id), session (id), seen (last activity, ms), user (the last one identified), until (no request before, ms)
  let state = read(STATE) || {}
  const queueKey = QUEUE + newId()
  let queue = [], underway = new Set(), controller = new AbortController()
  let user = own.user, timer, failures = 0, limit = MAX_BATCH
  const stats = { queued: 0, sent: 0, rejected: 0, dropped: 0 }

  const allowed = purpose => !!choice?.[purpose]
  const mayKnow = () => allowed('train') || allowed('personalize')
  const remember = () => write(STATE, state)
  // A clock that was set back must not silence us for days.
  const pause = () => {
    const left = state.until - Date.now()
    return left > 0 && left < 2 * LONGEST_WAIT ? left : 0
  }
  const keepQueue = () => {
    stats.queued = queue.length
    queue.length ? write(queueKey, queue) : remove(queueKey)
  }
  const drop = (events, why, counter) => {
    stats[counter] += events.length
    console.warn(STATE, counter, events.length, why)
  }

  // A visit ends after half an hour; so does the id of somebody whom nobody may know. Another person on this device has
  // other ids.
  const touch = () => {
    if (user && state.user && state.user !== user) forgetIds()
    if (!state.session || Date.now() - state.seen > 1800000) {
      state.session = newId()
      if (!mayKnow()) state.anonymous = 0
    }
    state.anonymous ||= newId()
    state.seen = Date.now()
    remember()
  }

  const forgetIds = () => { state.anonymous = state.session = state.user = 0 }

  const enqueue = events => {
    queue.push(...events)
    const excess = queue.splice(0, queue.length - MAX_QUEUED)
    if (excess.length) drop(excess, 'the queue is full', 'dropped')
    keepQueue()
    schedule(queue.length - underway.size < limit ? BATCH_DELAY : 0)
  }

  // What other pages left behind, in storage or because they were closed in the middle of a request. A page that is
  // still there may send its events too: under the same ids.
  const adopt = () => {
    const keys = storedQueues().filter(key => key !== queueKey)
    const events = new Map(keys.flatMap(key => read(key) || []).map(event => [event.event_id, event]))
    if (events.size) enqueue([...events.values()])
    keys.forEach(remove)
  }

  // Returns the id of the event; null when nothing may be sent.
  const track = (type, fields) => {
    if (!allowed('store')) return null
    touch()
    const event = {
      event_id: newId(), event_type: type, timestamp: now(), anonymous_id: state.anonymous,
      user_id: mayKnow() && user || undefined, session_id: state.session, page_view_id: pageView, channel: 'web',
      consent: choice, ...fields,
    }
    if (sizeOf(event) > MAX_BYTES) drop([event], 'too large', 'dropped')
    else enqueue([event])
    return event.event_id
  }

  const schedule = delay => {
    const wait = Math.max(delay, pause())
    if (timer?.at <= Date.now() + wait) return
    clearTimeout(timer?.id)
    timer = { at: Date.now() + wait, id: setTimeout(() => { timer = 0; flush() }, wait) }
  }

  // One batch at a time; when the page goes, one more for what waits. An event leaves the queue when the server has said
  // what became of it, so whatever else happens, it is sent again under its id, here or on the next page.
  const flush = async leaving => {
    if (!allowed('store') || underway.size && !leaving) return
    if (pause() && (state.asked || !leaving)) return schedule(0)
    const batch = []
    let size = 0
    for (const event of queue) {
      if (underway.has(event)) continue
      size += sizeOf(event) + 50
      if (batch.length === limit || batch.length && size > MAX_BYTES) break
      batch.push(event)
    }
    if (!batch.length) return
    const body = JSON.stringify({ events: batch.map(event => ({ ...event, sent_at: now() })) })
    // Text needs no preflight from another origin; the API reads it as JSON.
    if (leaving && !('keepalive' in Request.prototype)) return navigator.sendBeacon(base + 'events' + search, body)
    const timeout = setTimeout(cancel, 30000)
    batch.forEach(event => underway.add(event))
    let wait = 0
    try {
      const answer = await fetch(base + 'events' + search, {
        method: 'POST', body, keepalive: true, credentials: 'omit', signal: controller.signal,
      })
      const { ok, status } = answer
      if (ok) {
        const { results } = await answer.json()
        const refused = results.filter(result => result.status === 'quarantined')
        stats.sent += batch.length - refused.length
        if (refused.length) drop(refused, refused[0].detail, 'rejected')
        settle(batch)
        limit = MAX_BATCH
        failures = 0
      } else if (status === 413 && batch.length > 1) {
        limit = batch.length >> 1
      } else if ([400, 413, 415, 422].includes(status)) {
        drop(batch, 'HTTP ' + status, 'rejected')
        settle(batch)
      } else {
        const after = answer.headers.get('Retry-After')
        wait = backoff(after > 0 ? after * 1000 : Date.parse(after) - Date.now())
      }
    } catch {
      wait = backoff(0)
    }
    clearTimeout(timeout)
    batch.forEach(event => underway.delete(event))
    if (allowed('store')) {
      if (wait) remember()
      if (queue.length) schedule(wait)
    }
  }
  const cancel = () => {
    controller.abort()
    controller = new AbortController()
  }
  const settle = batch => {
    queue = queue.filter(event => !batch.includes(event))
    keepQueue()
  }
  // At least what the server asks for, and a random part of 1 s, 2 s, 4 s ... 5 minutes, so that not all come back at once.
  const backoff = asked => {
    const wait = Math.min(asked > 0 ? asked : 0, LONGEST_WAIT) +
      Math.random() * Math.min(1000 * 2 ** failures++, 300000)
    state.until = Date.now() + wait
    state.asked = asked > 0
    return wait
  }

  // The page: its view, its dwell, its items.
  let pageView, item, lookedAt, inView = new Map(), shown = new Set(), seenNow = new Map()
  const start = fields => {
    const { item_id, ...rest } = fields || {}
    pageView = newId()
    item = item_id
    lookedAt = doc.hidden ? 0 : performance.now()
    shown = new Set()
    track('page_view', {
      ...rest, context: { path: location.pathname, referrer: attempt(() => new URL(doc.referrer).host) || undefined },
    })
    if (item) track('view_item', { ...rest, item_id: item })
    restartClocks()
    scan()
  }
  const page = fields => { leave(); start(fields) }

  // Dwell comes in pieces: a page that is put away may never come back to tell the sum.
  const leave = () => {
    const seconds = lookedAt ? Math.round(performance.now() - lookedAt) / 1000 : 0
    lookedAt = 0
    if (seconds >= 1) track('user_engagement', { value: seconds, item_id: item })
    tellSeen()
  }

  // <section data-nightjar-recommendation="ID" data-nightjar-placement="P"> ... <a data-nightjar-item="i9"> ...
  const owner = (element, name) => element.closest?.(`[data-nightjar-${name}]`)
  const find = (element, name) => owner(element, name)?.getAttribute('data-nightjar-' + name)
  const about = element => {
    const items = owner(element, 'recommendation')?.querySelectorAll('[data-nightjar-item]') || []
    return {
      item_id: find(element, 'item'), recommendation_id: find(element, 'recommendation'),
      placement: find(element, 'placement'), position: [...items].indexOf(element) + 1 || undefined,
    }
  }
  const see = element => {
    const { item_id, position, ...rest } = about(element)
    const key = [item_id, rest.recommendation_id, rest.placement] + ''
    if (!item_id || shown.has(key) || !allowed('store')) return
    shown.add(key)
    // What comes into view together is told together.
    const slate = [rest.recommendation_id, rest.placement] + ''
    if (!seenNow.size) setTimeout(tellSeen, 100)
    if (!seenNow.has(slate)) seenNow.set(slate, { ...rest, items: [] })
    seenNow.get(slate).items.push({ item_id, position })
  }
  const tellSeen = () => {
    const slates = [...seenNow.values()]
    seenNow.clear()
    slates.forEach(fields => track('impression', fields))
  }
  const watcher = new IntersectionObserver(entries => entries.forEach(({ target, isIntersecting, intersectionRatio }) => {
    const clock = inView.get(target)
    if (isIntersecting && intersectionRatio >= 0.5) {
      if (clock === undefined) inView.set(target, clockFor(target))
    } else {
      clearTimeout(clock)
      inView.delete(target)
    }
  }), { threshold: 0.5 })
  // Half of it for a second: the standard of the Media Rating Council.
  const clockFor = target => doc.hidden ? 0 : setTimeout(see, 1000, target)
  const restartClocks = () => inView.forEach((clock, target) => {
    clearTimeout(clock)
    inView.set(target, clockFor(target))
  })
  let scanning
  const scan = () => {
    scanning ||= setTimeout(() => {
      scanning = 0
      doc.querySelectorAll('[data-nightjar-item]').forEach(element => watcher.observe(element))
    }, 50)
  }
  const click = ({ type, button, target }) => {
    const element = (type === 'click' || button === 1) && owner(target, 'item')
    if (!element) return
    const { position, ...fields } = about(element)
    track('click', { ...fields, properties: { position } })
  }

  const consent = ({ store, train, personalize }) => {
    const was = allowed('store')
    choice = { store: !!store, train: !!train, personalize: !!personalize }
    write(CONSENT, choice)
    obey(was)
  }
  // store=false: what waits is forgotten, what is under way is broken off; only the choice itself is kept, so that the
  // next page knows it. Else what waits goes out under the newest choice.
  const obey = was => {
    if (allowed('store')) {
      if (!mayKnow()) state.anonymous = state.user = 0
      remember()
    } else {
      state = {}
      queue = []
      seenNow.clear()
      cancel()
      storedQueues().concat(STATE).forEach(remove)
    }
    queue.forEach(event => {
      event.consent = choice
      if (!mayKnow()) delete event.user_id
    })
    keepQueue()
    if (allowed('store') && !was) begin()
  }
  // What another page of this site wrote: its session and its pauses are ours, and above all its consent.
  const reread = () => {
    const was = allowed('store')
    state = read(STATE) || {}
    choice = read(CONSENT)
    obey(was)
    return was
  }
  addEventListener('storage', ({ key }) => {
    if (key === STATE) state = read(STATE) || {}
    else if (!key || key === CONSENT) reread()
  })

  // Who this is: tells the server once per device and person.
  const identify = id => {
    user = id || undefined
    if (!user) forgetIds()
    else if (mayKnow() && allowed('store') && state.user !== user) {
      touch()
      state.user = user
      track('identify')
    }
  }

  // A slate. What may not be personalized is asked for nobody.
  const recommend = async question => {
    if (allowed('store')) touch()
    const known = allowed('store') && allowed('personalize')
    const who = known ? { user_id: user, anonymous_id: state.anonymous, session_id: state.session } : {}
    const answer = await fetch(base + 'recommendations' + search, {
      method: 'POST', credentials: 'omit',
      body: JSON.stringify({ ...who, ...question, consent: { store: allowed('store'), personalize: known } }),
    })
    const slate = await answer.json()
    if (!answer.ok) throw new Error(slate.detail || slate.title)
    return slate
  }

  const begin = () => {
    adopt()
    start({ item_id: own.item })
    if (user) identify(user)
  }
  const hide = () => { leave(); flush(true) }
  doc.addEventListener('visibilitychange', () => {
    restartClocks()
    if (doc.hidden) hide()
    else lookedAt = performance.now()
  })
  addEventListener('pagehide', hide)
  // From the back/forward cache: the same page, seen once more. It was deaf while it lay there.
  addEventListener('pageshow', ({ persisted }) => persisted && reread() && start({ item_id: item }))
  addEventListener('online', () => {
    failures = 0
    if (!state.asked) state.until = 0
    schedule(0)
  })
  doc.addEventListener('click', click, true)
  doc.addEventListener('auxclick', click, true)
  new MutationObserver(changes => {
    changes.forEach(({ type, target }) => {
      if (type !== 'attributes') return
      watcher.unobserve(target)
      clearTimeout(inView.get(target))
      inView.delete(target)
    })
    scan()
  }).observe(doc, {
    childList: true, subtree: true, attributes: true, attributeFilter: ['data-nightjar-item'],
  })

  const api = { track, page, consent, identify, recommend, flush: () => flush(), stats: () => ({ ...stats }) }
  // Before this script was here a page could only make notes: (window.nightjar ||= []).push(['track', 'search', {}])
  api.push = ([method, ...rest]) => api[method](...rest)
  window.nightjar = api
  // The person's own choice wins over what the page says by default.
  const launch = () => {
    if (allowed('store')) begin()
    else if (!choice && own.consent) {
      consent(Object.fromEntries(own.consent.split(/[\s,]+/).map(purpose => [purpose, true])))
    }
    if (Array.isArray(early)) early.forEach(api.push)
  }
  if (doc.prerendering) doc.addEventListener('prerenderingchange', launch, { once: true })
  else launch()
})()
