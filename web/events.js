// Live events: the stream of `/v1/events` with its filter language, newest first, a bounded number of them.
//
// The filter is the node's matter: what is wrong with one is told in the node's words. While nobody looks at this view no
// stream is open. `row`s are made of CloudEvents 1.0.

import { h } from "./dom.js";
import { ask } from "./session.js";
import { pause } from "./state.js";
import { clock } from "./words.js";

/** How many events are kept. */
export const KEPT = 400;
const NOTES = { "steadfast.gap": "warn", "steadfast.source.down": "bad", "steadfast.source.refused": "warn", "steadfast.source.restarted": "busy" };

/** One event as a line: `{id, at, node, type, subject, fields, tone}`. */
export function line(event) {
  const type = event.type.replace(/^steadfast\./, "");
  const fields = Object.entries(event.data ?? {}).map(([name, value]) => `${name}=${shown(value)}`).join(" ");
  return {
    id: event.id, at: Date.parse(event.time), node: (event.source ?? "").split("/").at(-1), type, subject: event.subject ?? "",
    fields, tone: NOTES[event.type] ?? (/failed|lost|removed|oom|down/.test(type) ? "bad" : "idle"),
  };
}

/** Another event before those that are there; none twice, and no more than are kept. */
export function added(lines, event) {
  const next = line(event);
  if (lines.some((known) => known.id === next.id)) return lines;
  return [next, ...lines].slice(0, KEPT);
}

/** The stream of the filter that is set, while the view is open. */
export function createFeed(store) {
  let source = null;
  let failures = 0;
  let retry = null;
  const change = (changes) => store.set({ feed: { ...store.get().feed, ...changes } });
  const url = () => {
    const { filter } = store.get().feed;
    return filter ? `/v1/events?filter=${encodeURIComponent(filter)}` : "/v1/events";
  };
  const close = () => {
    clearTimeout(retry);
    source?.close();
    source = null;
  };
  const open = () => {
    close();
    source = new EventSource(url());
    const own = source;
    source.onopen = () => {
      failures = 0;
      change({ standing: "live", problem: "" });
    };
    source.onmessage = (message) => {
      if (!store.get().feed.isPaused) change({ lines: added(store.get().feed.lines, JSON.parse(message.data)) });
    };
    source.addEventListener("error", (event) => {
      if (event.data) change({ problem: JSON.parse(event.data).message });
      if (own !== source) return;
      change({ standing: "lost" });
      if (source.readyState === EventSource.CLOSED) explain(own);
    });
  };
  // A stream that is refused says nothing: the same question without a stream tells why.
  const explain = async (own) => {
    const abort = new AbortController();
    try {
      const answer = await fetch(url(), { signal: abort.signal });
      if (!answer.ok) {
        const message = (await answer.json()).message;
        if (own === source) change({ standing: "refused", problem: message });
        return;
      }
    } catch {
      // It does not answer at all: asked again below.
    } finally {
      abort.abort();
    }
    if (own !== source) return;
    retry = setTimeout(open, pause(failures));
    failures += 1;
  };
  return {
    async open() {
      if (source) return;
      const document = await ask("GET", "/v1/openapi.json").catch(() => null);
      if (document && !document.paths["/v1/events"]) {
        change({ standing: "absent" });
        return;
      }
      open();
    },
    close,
    filter(filter) {
      change({ filter, lines: [], problem: "", standing: "opening" });
      open();
    },
    toggle: () => change({ isPaused: !store.get().feed.isPaused }),
  };
}

/** What a feed is before it is opened. */
export const FEED = Object.freeze({ lines: [], filter: "", standing: "opening", problem: "", isPaused: false });

/** The whole view. */
export function events(state, now, feed) {
  const { feed: found } = state;
  if (found.standing === "absent") {
    return [h("div", { class: "card" }, h("p", null, "This node does not offer events: it runs an older version, or was built without them."))];
  }
  const submit = (event) => {
    event.preventDefault();
    feed.filter(new FormData(event.target).get("filter").trim());
  };
  return [
    h("form", { class: "card filter", role: "search", onsubmit: submit },
      h("label", { for: "filter" }, "Filter"),
      h("input", { id: "filter", name: "filter", type: "search", spellcheck: "false", autocapitalize: "off", autocomplete: "off", placeholder: "type=disk.usage and node=alpha and percent>90", "aria-describedby": "filter-problem" }),
      h("button", { class: "primary", type: "submit" }, "Apply"),
      h("button", { type: "button", "aria-pressed": String(found.isPaused), onclick: feed.toggle }, found.isPaused ? "Go on" : "Hold"),
      h("p", { id: "filter-problem", class: found.problem ? "problem-text pre" : "quiet", role: "status" },
        found.problem || standing(found))),
    h("div", { class: "card scroll" },
      h("table", { class: "feed" },
        h("thead", null, h("tr", null, ["Time", "Type", "Node", "About", "Fields"].map((name) => h("th", { key: name, scope: "col" }, name)))),
        h("tbody", null, found.lines.map((one) => h("tr", { key: one.id, memo: [one], class: one.tone },
          h("td", { class: "nowrap" }, clock(one.at, now)), h("td", { class: "nowrap" }, h("span", { class: `dot ${one.tone}`, "aria-hidden": "true" }), ` ${one.type}`),
          h("td", null, one.node), h("td", null, one.subject), h("td", { class: "fields" }, one.fields))))),
      found.lines.length === 0 ? h("p", { class: "quiet" }, "Nothing has happened since this was opened.") : null),
  ];
}

function standing(found) {
  if (found.isPaused) return "Held: what happens now is not shown.";
  const words = { opening: "Opening the stream…", live: found.filter ? "Live, filtered." : "Live: everything that happens on any node.", lost: "The stream broke off; it is opened again." };
  return words[found.standing] ?? "";
}

function shown(value) {
  return typeof value === "string" && /[\s="]/.test(value) ? JSON.stringify(value) : typeof value === "object" ? JSON.stringify(value) : String(value);
}
