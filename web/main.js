// The page: who looks, which view, and drawing what is known. Start reading here.
//
// Everything shown comes from the node's picture (`state.js`), and drawing is a function of it (`dom.js`). No state is kept
// beyond this window, and nothing is asked for again and again: the node tells what changes.

import { createActions, messages } from "./actions.js";
import { catalog } from "./catalog.js";
import { containers } from "./containers.js";
import { h, render } from "./dom.js";
import { createFeed, events, FEED } from "./events.js";
import { health, problems } from "./judge.js";
import { links } from "./links.js";
import { nodes } from "./nodes.js";
import { overview } from "./overview.js";
import { createShelf, programs, SHELF } from "./programs.js";
import { ask, may, session, signIn, signInPanel, signOut, tokenIn } from "./session.js";
import { createStore, EMPTY, follow } from "./state.js";
import { views } from "./views.js";

const VIEWS = [
  ["overview", "Overview"], ["nodes", "Nodes"], ["links", "Links"], ["views", "Views"], ["containers", "Containers"],
  ["programs", "Programs"], ["catalog", "Catalog"], ["events", "Events"],
];

const store = createStore({
  session: undefined, gateProblem: "", picture: EMPTY, live: false, known: false, clockOffset: 0, paths: null, messages: [],
  view: viewIn(location.hash), room: roomNow(), cell: null, network: null, container: null, feed: FEED, shelf: SHELF,
});
const root = document.getElementById("page");
const actions = createActions(store, document.getElementById("dialog"));
const feed = createFeed(store);
const shelf = createShelf(store);
let stopFollowing = () => {};
const act = Object.assign((kind, name) => actions.ask(kind, name), {
  may: (role) => may(store.get().session, role),
  has: (path) => Boolean(store.get().paths?.[path]),
});

function viewIn(hash) {
  const name = hash.slice(1).split("/")[0];
  return VIEWS.some(([known]) => known === name) ? name : "overview";
}

/** The room of a view in pixels, and whether cards stand side by side; as in `style.css`. */
function roomNow() {
  const isWide = !matchMedia("(max-width: 860px)").matches;
  const isPhone = matchMedia("(max-width: 520px)").matches;
  const width = Math.min(document.documentElement.clientWidth, 1240) - (isWide ? 222 : 32);
  return { width, isWide, inset: isPhone ? 30 : 38 };
}

let isDrawing = false;
let drawnView = null;
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    const state = store.get();
    render(root, page(state));
    const turned = `${state.view} ${state.known}`;
    const isTurned = drawnView !== turned && root.querySelector(".rail");
    if (!isTurned) return;
    drawnView = turned;
    // On a narrow screen the rail is a strip, and the current view may lie outside.
    root.querySelector(".rail [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  });
}

function page(state) {
  if (state.session === null) return h("div", { key: "gate", class: "shell" }, header(state), signInPanel(state, enter));
  return h("div", { key: "shell", class: "shell" },
    h("a", { class: "skip", href: "#main", onclick: skip }, "To the content"),
    header(state), rail(state),
    h("main", { id: "main", tabindex: "-1", key: "main", "aria-busy": String(!state.known) },
      h("h1", { id: "title" }, VIEWS.find(([name]) => name === state.view)[1]),
      h("div", { class: "view", key: state.view }, state.known ? view(state) : h("p", { class: "card quiet waiting" }, "Waiting for this node to tell…"))),
    messages(state, actions.dismiss));
}

function header(state) {
  const { about } = state.picture;
  const told = state.known ? health(state.picture) : { tone: "idle", title: "" };
  return h("header", { class: "top", key: "top" },
    h("a", { class: "brand", href: "#overview" }, h("img", { src: "icon.svg", alt: "", width: 24, height: 24 }), h("span", { class: "word" }, "Steadfast")),
    h("span", { class: "cluster" }, about.cluster ?? ""),
    state.known ? h("a", { class: `pill health ${told.tone}`, href: "#overview" }, told.title) : null,
    h("span", { class: "space" }),
    state.session ? [
      h("span", { key: "live", class: `live ${state.live ? "on" : "off"}`, role: "status" }, h("span", { class: "lamp", "aria-hidden": "true" }), h("span", null, state.live ? "live" : "not connected")),
      h("span", { key: "who", class: "quiet who" }, `${about.node ?? ""} · ${state.session.role}`),
      h("button", { key: "out", type: "button", class: "link", onclick: leave }, "Sign out"),
    ] : null);
}

function rail(state) {
  const found = state.known ? problems(state.picture) : [];
  return h("nav", { class: "rail", "aria-label": "Views", key: "rail" }, h("ul", null, VIEWS.map(([name, title]) => {
    const wrong = name === "overview" ? 0 : found.filter((one) => one.view === name).length;
    const isGrave = found.some((one) => one.view === name && one.level === "bad");
    return h("li", { key: name }, h("a", { href: `#${name}`, "aria-current": state.view === name ? "page" : undefined }, title,
      wrong ? h("span", { class: `badge ${isGrave ? "bad" : ""}` }, String(wrong), h("span", { class: "hidden" }, wrong === 1 ? " problem" : " problems")) : null));
  })));
}

function view(state) {
  const now = Date.now() + state.clockOffset;
  const shown = {
    overview: () => overview(state, now),
    nodes: () => nodes(state, act),
    links: () => links(state, now, look, (network) => store.set({ network })),
    views: () => views(state, now),
    containers: () => containers(state, now, act, (container) => store.set({ container })),
    programs: () => programs(state, now, shelf),
    catalog: () => catalog(state),
    events: () => events(state, now, feed),
  };
  return shown[state.view]();
}

function look(cell) {
  const known = store.get().cell;
  if (known?.from !== cell.from || known.to !== cell.to || known.network !== cell.network) store.set({ cell });
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

async function enter(token) {
  try {
    await signIn(token);
    store.set({ gateProblem: "" });
    await begin();
  } catch (error) {
    store.set({ session: null, gateProblem: error.message });
  }
}

async function leave() {
  await signOut().catch(() => null);
  location.reload();
}

/** Whether there is a session; then everything begins. */
async function begin() {
  const found = await session();
  if (!found.session) {
    store.set({ session: null, gateProblem: found.signedOut ? store.get().gateProblem : "This node does not answer; load the page again when it does." });
    return;
  }
  store.set({ session: found.session });
  stopFollowing();
  stopFollowing = follow(store);
  const document = await ask("GET", "/v1/openapi.json").catch(() => null);
  store.set({ paths: document?.paths ?? null });
}

function turn() {
  const name = viewIn(location.hash);
  const { view: before } = store.get();
  store.set({ view: name });
  document.title = `${VIEWS.find(([known]) => known === name)[1]} · Steadfast`;
  if (name === "events") feed.open();
  else feed.close();
  if (name === "programs") shelf.open();
  else shelf.close();
  if (before !== name) {
    window.scrollTo(0, 0);
    document.getElementById("main")?.focus({ preventScroll: true });
  }
}

store.subscribe(draw);
window.addEventListener("hashchange", () => {
  // Somebody opened another address with a token in this window.
  const token = tokenIn(location.hash);
  if (token) start(token);
  else turn();
});
window.addEventListener("resize", () => store.set({ room: roomNow() }));
// Ages go on by themselves; nothing is asked for.
setInterval(() => { if (!document.hidden) draw(); }, 1000);

async function start(token) {
  if (token) {
    history.replaceState(null, "", location.pathname);
    await enter(token);
  } else {
    await begin();
  }
  turn();
}

draw();
start(tokenIn(location.hash));
