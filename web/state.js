// What the page knows: the picture that the node sends, whether it is live, and who looks.
//
// The picture is changed only by the node's merge patches (RFC 7386), and what a patch does not name stays the very same
// object, so that views can tell by identity what to draw anew. It keeps nothing beyond this window.

import { session } from "./session.js";

/** What is known before anything came. */
export const EMPTY = Object.freeze({
  about: {}, standing: {}, catalog: {}, verdicts: {}, nodes: {}, links: {}, views: {}, containers: {},
});

/** How long to wait before the stream is opened again, in ms, after so many failures. */
export function pause(failures) {
  return Math.min(500 * 2 ** failures, 10_000);
}

/** A JSON merge patch applied; neither argument is changed. */
export function merge(target, patch) {
  if (!isObject(patch)) return patch;
  const base = isObject(target) ? target : {};
  let merged = null;
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) {
      if (Object.hasOwn(base, key)) delete (merged ??= { ...base })[key];
    } else {
      const after = merge(Object.hasOwn(base, key) ? base[key] : undefined, value);
      if (after !== base[key] || !Object.hasOwn(base, key)) (merged ??= { ...base })[key] = after;
    }
  }
  return merged ?? (isObject(target) ? target : base);
}

/** A store: `get()`, `set(changes)`, and whoever is told of each change. */
export function createStore(initial) {
  let state = initial;
  const listeners = new Set();
  return {
    get: () => state,
    set(changes) {
      state = { ...state, ...changes };
      for (const listener of listeners) listener(state);
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** Takes over one message of the stream. */
export function taken(state, message, now) {
  const picture = message.whole ? merge(EMPTY, message.change) : merge(state.picture, message.change);
  return { picture, live: true, known: true, clockOffset: message.at_unix_ms - now };
}

/** Follows the picture until the session is over, or what it gives back is called. */
export function follow(store) {
  let failures = 0;
  let isOver = false;
  let source = null;
  const open = () => {
    if (isOver) return;
    source = new EventSource("/v1/page/events");
    source.onmessage = (event) => {
      failures = 0;
      store.set(taken(store.get(), JSON.parse(event.data), Date.now()));
    };
    source.onerror = async () => {
      store.set({ live: false });
      if (source.readyState !== EventSource.CLOSED || isOver) return;
      // The browser gives up by itself when it is refused: ask why.
      const found = await session();
      if (found.signedOut) {
        isOver = true;
        store.set({ session: null, known: false, picture: EMPTY });
        return;
      }
      setTimeout(open, pause(failures));
      failures += 1;
    };
  };
  open();
  return () => {
    isOver = true;
    source?.close();
  };
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
