// The catalog: who keeps it, whether it answers, and what failures leave it answering.

import { h } from "./dom.js";
import { listed, sentence } from "./words.js";

const ENGINES = { embedded: "the nodes themselves, by a majority of their voters", etcd: "an etcd beside the nodes" };

/** The whole view. */
export function catalog(state) {
  const { catalog: found, standing, about } = state.picture;
  const survives = standing.survives;
  return [
    h("section", { class: "card", "aria-labelledby": "engine-title" },
      h("div", { class: "card-head" },
        h("h2", { id: "engine-title" }, found.engine === "etcd" ? "etcd" : "Embedded catalog"),
        h("span", { class: `pill ${found.quorum ? "good" : "bad"}` }, found.quorum ? "answers" : "stands still")),
      h("p", null, `Kept by ${ENGINES[found.engine] ?? found.engine ?? "nobody known here"}.`),
      found.why ? h("p", { class: "problem-text" }, sentence(found.why)) : null,
      found.quorum ? null : h("p", { class: "problem-text" }, "Nothing is started or moved until a majority answers; containers freeze when their lease is over."),
      h("dl", { class: "pairs" },
        pair("Majority", found.reachable ? "can be reached" : "can't be reached"),
        found.engine === "etcd" ? pair("Endpoints", (found.endpoints ?? []).map((one) => h("div", { key: one }, h("code", null, one)))) : pair("Leader", found.leader ?? h("span", { class: "quiet" }, "none known here")),
        pair("View", standing.view === undefined ? "–" : `number ${standing.view}: ${listed([...standing.members ?? []].sort())}`),
        pair("Lease", about.lease_ms === undefined ? "–" : `${about.lease_ms / 1000} s; ${about.node} ${standing.lease_live ? "has one" : "has none"}`))),
    survives ? h("section", { class: "card", "aria-labelledby": "loss-title" },
      h("h2", { id: "loss-title" }, "What may fail at once"),
      h("dl", { class: "figures" },
        figure("Nodes", survives.nodes, "whichever: majorities stay"), figure("Hosts", survives.hosts, "whichever: checkpoints stay too"),
        survives.widest_domains === undefined ? null : figure("Failure domains", survives.widest_domains, "of the widest, whichever")),
      h("p", null, `It survives ${survives.sentence}.`),
      survives.domains.length ? h("div", { class: "scroll" }, h("table", null,
        h("thead", null, h("tr", null, h("th", { scope: "col" }, "Failure domain"), h("th", { scope: "col" }, "Hosts"), h("th", { scope: "col" }, "Its loss"))),
        h("tbody", null, survives.domains.map((domain) => h("tr", { key: domain.domain.join("/") },
          h("th", { scope: "row" }, domain.domain.join(" / ")), h("td", null, domain.hosts.join(", ")),
          h("td", null, h("span", { class: `pill ${domain.survived ? "good" : "warn"}` }, domain.survived ? "survived" : "not survived"), " ", domain.why ?? "")))))) : null) : null,
  ];
}

function figure(name, number, note) {
  return h("div", { class: "figure", key: name }, h("dt", null, name), h("dd", null, String(number)), h("dd", { class: "quiet" }, note));
}

function pair(name, value) {
  return [h("dt", { key: `${name}?` }, name), h("dd", { key: name }, value)];
}
