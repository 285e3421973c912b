// The nodes: what each is, where it is, what it carries, and how candidates stand.

import { h } from "./dom.js";
import { holders, ordered } from "./judge.js";
import { stateWord } from "./map.js";
import { bytes, sentence, tone } from "./words.js";

/** The whole view; `act(kind, name)` asks for an action. */
export function nodes(state, act) {
  return [h("ul", { class: "cards" }, ordered(state.picture.nodes).map((node) => card(node, state, act)))];
}

function card(node, state, act) {
  const verdicts = (state.picture.verdicts.list ?? []).filter((verdict) => verdict.nodes.includes(node.name));
  const copies = Object.values(state.picture.containers)
    .filter((container) => holders(container, state.picture.nodes).includes(node.name)).map((container) => container.name).sort();
  const isMember = ["member", "suspected", "draining"].includes(node.state);
  const isEmpty = node.containers.length === 0;
  return h("li", { key: node.name, class: `card node-card ${isMember ? "" : "out"}`, "data-node": node.name, "data-state": node.state },
    h("div", { class: "card-head" },
      h("h2", null, node.name),
      h("span", { class: `pill ${tone(node.state)}` }, stateWord(node)),
      node.this ? h("span", { class: "pill idle", title: "the node that serves this page" }, "this node") : null,
      state.picture.catalog.leader === node.name ? h("span", { class: "pill idle" }, "leader") : null),
    verdicts.map((verdict) => h("p", { key: verdict.class, class: "problem-text" }, sentence(verdict.sentence, [node.name]))),
    h("dl", { class: "pairs" },
      pair("Addresses", networksFirst(node.addresses, state.picture.about.networks ?? []).map(([network, address]) =>
        h("div", { key: network }, h("span", { class: "quiet" }, `${network} `), h("code", null, address)))),
      node.domain.length ? pair("Failure domain", node.domain.join(" / ")) : null,
      pair("Runs", isEmpty ? h("span", { class: "quiet" }, "nothing") : node.containers.join(", ")),
      pair("Holds copies of", copies.length ? copies.join(", ") : h("span", { class: "quiet" }, "nothing")),
      pair("Lends", `${bytes(node.memory_bytes)} for checkpoints`)),
    node.probation ? probation(node.probation) : null,
    isMember ? h("div", { class: "actions" },
      node.state === "draining"
        ? h("button", { type: "button", disabled: !act.may("operate"), onclick: () => act("undrain", node.name) }, "Take containers again")
        : h("button", { type: "button", disabled: !act.may("operate"), onclick: () => act("drain", node.name) }, "Drain…")) : null);
}

function probation(found) {
  const evidence = found.evidence ?? [];
  return h("div", { class: "probation" },
    h("p", { class: "quiet" }, found.eliminated
      ? `Not admitted: ${found.eliminated.measured} ${found.eliminated.advice}`
      : `Wants to ${found.intent === "join" ? "be a member" : found.intent}${found.replaces ? ` in the place of ${found.replaces}` : ""}`),
    h("ul", { class: "plain small" }, evidence.map((one) => h("li", { key: one.criterion },
      h("span", { class: `dot ${{ pass: "good", pending: "busy", fail: "bad" }[one.standing] ?? "idle"}`, "aria-hidden": "true" }),
      ` ${one.criterion}: ${one.measured}`))));
}

/** Addresses in the order of the networks. */
function networksFirst(addresses, networks) {
  const place = ([network]) => (networks.includes(network) ? networks.indexOf(network) : networks.length);
  return Object.entries(addresses).sort((left, right) => place(left) - place(right));
}

function pair(name, value) {
  return [h("dt", { key: `${name}?` }, name), h("dd", { key: name }, value)];
}
