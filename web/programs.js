// Durable programs: their instances, a page at a time, and how the exchanges of the one that is chosen stand.
//
// What changes here changes too often for the node to tell all of it, and there may be very many: one page is asked for, and
// asked for again while somebody looks. Nothing is held of other pages.

import { h } from "./dom.js";
import { sequence } from "./sequence.js";
import { ask } from "./session.js";
import { ago, clock, count } from "./words.js";

/** How many instances one page has. */
export const PAGE = 50;
/** How often what is shown is asked for again, in ms. */
const EVERY = 2000;
const TONES = { running: "busy", sending: "busy", waiting: "good", paused: "warn", failing: "warn", parked: "bad" };
const DOING = ["running", "waiting", "sending", "paused", "failing", "parked", "ended", "cancelled"];

/** What is shown before anything was asked for. */
export const SHELF = Object.freeze({
  list: null, programs: [], program: "", doing: "", before: [], after: "", chosen: null, shown: null, history: [], problem: "",
});

/** The address of a page of instances. */
export function pageOf(shelf) {
  const wanted = Object.entries({ program: shelf.program, doing: shelf.doing, after: shelf.after, limit: PAGE });
  return `/v1/episodes?${new URLSearchParams(wanted.filter(([, value]) => value !== ""))}`;
}

/** The address of an instance: everything behind the first slash of its name is its key. */
export function addressOf(name) {
  const [program, ...key] = name.split("/");
  return `/v1/episodes/${program}/${encodeURIComponent(key.join("/"))}`;
}

/** Asks for what is shown, while the view is open. */
export function createShelf(store) {
  let timer = null;
  let asked = 0;
  const change = (changes) => store.set({ shelf: { ...store.get().shelf, ...changes } });
  const load = async () => {
    clearTimeout(timer);
    timer = null;
    asked += 1;
    const own = asked;
    const { shelf } = store.get();
    const changes = {};
    try {
      [changes.list, changes.programs] = await Promise.all([ask("GET", pageOf(shelf)), ask("GET", "/v1/programs")]);
      changes.problem = "";
    } catch (error) {
      changes.problem = error.message;
    }
    if (shelf.chosen) {
      const address = addressOf(shelf.chosen);
      const found = await Promise.all([ask("GET", address), ask("GET", `${address}/history`)]).catch((error) => [null, [], error]);
      [changes.shown, changes.history] = found;
      if (found[2]) changes.problem = found[2].message;
    }
    // Something else was asked for meanwhile, or nobody looks any more.
    if (own !== asked) return;
    change(changes);
    timer = setTimeout(load, EVERY);
  };
  const turn = (changes) => {
    change(changes);
    load();
  };
  return {
    open: () => timer === null && load(),
    close() {
      clearTimeout(timer);
      timer = null;
      asked += 1;
    },
    filter: (program, doing) => turn({ program, doing, after: "", before: [], list: null }),
    choose: (name) => turn({ chosen: store.get().shelf.chosen === name ? null : name, shown: null, history: [] }),
    next() {
      const { shelf } = store.get();
      turn({ before: [...shelf.before, shelf.after], after: shelf.list.next });
    },
    back() {
      const { before } = store.get().shelf;
      turn({ before: before.slice(0, -1), after: before.at(-1) ?? "" });
    },
  };
}

/** The whole view. */
export function programs(state, now, shelf) {
  const found = state.shelf;
  return [
    filter(found, shelf),
    h("section", { key: "list", class: "card", "aria-labelledby": "instances-title" },
      h("h2", { id: "instances-title" }, "Instances"),
      found.list ? list(found, now, shelf) : h("p", { class: "quiet" }, found.problem ? "Nothing is known." : "Asking for the instances…")),
    found.chosen ? chosen(found, now) : null,
  ];
}

function filter(found, shelf) {
  const change = (event) => {
    const form = new FormData(event.currentTarget);
    shelf.filter(form.get("program"), form.get("doing"));
  };
  const options = (names, current, all) => ["", ...names].map((name) => h("option", { key: name, value: name, selected: name === current }, name || all));
  return h("form", { key: "filter", class: "card segments", role: "search", onchange: change, onsubmit: (event) => event.preventDefault() },
    h("select", { name: "program", "aria-label": "Program" }, options(found.programs.map((one) => one.name), found.program, "All programs")),
    h("select", { name: "doing", "aria-label": "What they do" }, options(DOING, found.doing, "Whatever they do")),
    h("p", { id: "programs-problem", class: found.problem ? "problem-text" : "hidden", role: "status" }, found.problem));
}

function list(found, now, shelf) {
  const { instances, next, silent } = found.list;
  return [
    silent?.length ? h("p", { class: "problem-text" }, `What ${silent.join(", ")} keeps is missing: it does not answer.`) : null,
    instances.length === 0 ? h("p", { class: "quiet" }, "There are no instances here. steadfast episode start begins one.") : h("div", { class: "scroll" },
      h("table", { class: "instances" },
        h("thead", null, h("tr", null, ["Program", "Key", "Version", "State", "Waits for", "Inbox", "Outbox", "Node"].map((name) => h("th", { key: name, scope: "col" }, name)))),
        h("tbody", null, instances.map((one) => row(one, found.chosen, now, shelf))))),
    h("div", { class: "actions" },
      h("button", { type: "button", disabled: found.before.length === 0, onclick: shelf.back }, "Back"),
      h("button", { type: "button", disabled: !next, onclick: shelf.next }, "Next")),
  ];
}

function row(one, current, now, shelf) {
  const [program, ...key] = one.name.split("/");
  const open = one.unacked + one.unconfirmed;
  return h("tr", { key: one.name, "data-instance": one.name, "data-doing": one.doing, title: `begun ${ago(one.begun_unix_ms, now)}` },
    h("td", null, program),
    h("th", { scope: "row" }, h("button", { type: "button", class: "link", "aria-expanded": String(one.name === current), onclick: () => shelf.choose(one.name) }, key.join("/"))),
    h("td", null, String(one.version)),
    h("td", null, h("span", { class: `pill ${TONES[one.doing] ?? "idle"}` }, one.doing)),
    h("td", null, one.waits_for || "–"), h("td", null, String(one.inbox)),
    h("td", null, open === 0 ? "–" : `${one.unacked} not acked, ${one.unconfirmed} not confirmed`), h("td", null, one.node));
}

function chosen(found, now) {
  const { shown, history } = found;
  if (!shown) return h("section", { key: "chosen", class: "card" }, h("h2", null, found.chosen), h("p", { class: "quiet" }, found.problem || "Asking for it…"));
  const wait = shown.wait.map(waited).join(", or ") || "nothing";
  return h("section", { key: "chosen", class: "card chosen", "data-chosen": shown.name, "aria-labelledby": "chosen-title" },
    h("div", { class: "card-head" },
      h("h2", { id: "chosen-title" }, shown.name), h("span", { class: `pill ${TONES[shown.doing] ?? "idle"}` }, shown.doing),
      h("span", { class: "quiet place" }, `version ${shown.version} on ${shown.node}, ${shown.mode}, ${count(shown.episode, "episode")}`)),
    h("dl", { class: "pairs" },
      pair("Waits for", shown.deadline_unix_ms === undefined ? wait : `${wait}, until ${clock(shown.deadline_unix_ms, now)}`),
      shown.stopped ? pair("Stopped", h("span", { class: "problem-text" }, shown.stopped.why)) : null,
      pair("Outbox", shown.outboxes.map(outbox).join("; ") || "empty"),
      pair("Memory", shown.is_quiet ? "nothing is remembered of any message" : "some exchanges are not finished")),
    h("h2", { class: "sequence-title" }, "Exchanges"),
    sequence(shown, history, now),
    h("p", { class: "legend quiet" }, "An exchange is a message, its ack, a confirm and its confirm-ack; what is dashed has not been made as far as this end knows."));
}

function waited(one) {
  const parts = [one.kind ?? "any event"];
  if (one.source) parts.push(`from ${one.source}`);
  if (one.correlation) parts.push(`about ${one.correlation}`);
  if (one.filter) parts.push(`where ${one.filter}`);
  return parts.join(" ");
}

function outbox(one) {
  return `${count(one.unacked, "message")} to ${one.to} not acknowledged, ${one.unconfirmed} not confirm-acked${one.given_up ? `, ${one.given_up} given up` : ""}`;
}

function pair(name, value) {
  return [h("dt", { key: `${name}?` }, name), h("dd", { key: name }, value)];
}
