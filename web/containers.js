// The containers: where each runs, how well it is protected, its copies on the node map, and what can be done to it.

import { h } from "./dom.js";
import { holders, isProtected, whereabouts } from "./judge.js";
import { nodeMap } from "./map.js";
import { legend, mapWidth } from "./overview.js";
import { ago, bytes, milliseconds, sentence, tone } from "./words.js";

/** The whole view; `act(kind, name)` asks for an action, `choose(name)` shows a container's copies. */
export function containers(state, now, act, choose) {
  const all = Object.values(state.picture.containers).sort((left, right) => left.name.localeCompare(right.name, "en"));
  if (all.length === 0) {
    return [h("div", { class: "card" }, h("p", null, "Nothing runs here yet."),
      h("pre", null, h("code", null, "steadfast run --name redis -- redis-server --save ''")))];
  }
  const chosen = state.picture.containers[state.container] ? state.container : all[0].name;
  return [h("div", { class: "columns" },
    h("ul", { class: "stack grow" }, all.map((one) => card(one, state, now, act, choose, one.name === chosen))),
    h("section", { class: "card sticky", "aria-labelledby": "copies-title" },
      h("h2", { id: "copies-title" }, `Copies of ${chosen}`),
      nodeMap(state.picture, mapWidth(state.room, 0.392), chosen),
      h("p", { class: "quiet" }, sentence(whereabouts(state.picture.containers[chosen], state.picture.nodes))),
      legend()))];
}

function card(one, state, now, act, choose, isChosen) {
  const isActive = ["running", "starting", "recovering", "stopping"].includes(one.state);
  const { nodes } = state.picture;
  return h("li", { key: one.name, class: `card container-card ${isChosen ? "chosen" : ""}`, "data-container": one.name },
    h("div", { class: "card-head" },
      h("h2", null, h("button", { type: "button", class: "link", "aria-pressed": String(isChosen), onclick: () => choose(one.name) }, one.name)),
      h("span", { class: `pill ${tone(one.state)}` }, one.state),
      isActive ? h("span", { class: `pill ${isProtected(one, nodes) ? "good" : "warn"}` }, `${holders(one, nodes).length} of ${one.copies_wanted} copies`) : null,
      h("span", { class: "quiet place" }, `on ${one.node}${one.owner_in_view ? "" : ", which is gone"}`)),
    one.reason ? h("p", { class: ["failed", "lost"].includes(one.state) ? "problem-text" : "quiet" }, sentence(one.reason)) : null,
    h("dl", { class: "pairs" },
      pair("Checkpoint", one.latest
        ? [`number ${one.latest.number}, ${ago(one.latest.taken_unix_ms, now)}, ${bytes(one.latest.bytes)}, held still for ${milliseconds(one.latest.frozen_ms)}`]
        : h("span", { class: "quiet" }, "none yet: what it does would be lost with its node")),
      pair("Copies on", one.latest?.copies.length ? one.latest.copies.map((copy) => {
        if (copy.node === one.node) return h("span", { key: copy.node, class: "tag quiet" }, `${copy.node}, which it is on itself`);
        const isThere = ["member", "suspected", "draining"].includes(nodes[copy.node]?.state);
        return h("span", { key: copy.node, class: `tag ${isThere ? "" : "minus"}`, title: isThere ? "" : "this node is not there" }, copy.node);
      }) : h("span", { class: "quiet" }, "no other node")),
      pair("Taken", one.spec.every === "never" ? "on demand only" : `every ${one.spec.every}`),
      one.spec.address ? pair("Address", h("code", null, one.spec.address)) : null,
      pair("Run epoch", String(one.epoch))),
    h("div", { class: "actions" },
      h("button", { type: "button", disabled: !act.may("operate") || one.state !== "running", onclick: () => act("checkpoint", one.name) }, "Checkpoint now…"),
      act.has("/v1/containers/{name}/move")
        ? h("button", { type: "button", disabled: !act.may("operate") || one.state !== "running", onclick: () => act("move", one.name) }, "Move…") : null));
}

function pair(name, value) {
  return [h("dt", { key: `${name}?` }, name), h("dd", { key: name }, value)];
}
