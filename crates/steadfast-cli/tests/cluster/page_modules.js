// What the page's modules promise where nothing is drawn, run in the browser of the test. Each `is` compares by JSON.

const [state, words, judge, links, map, session, events, dom, programs, sequence] = await Promise.all(
  ["state", "words", "judge", "links", "map", "session", "events", "dom", "programs", "sequence"].map((name) => import(`/${name}.js`)));
const wrong = [];
let compared = 0;
const is = (what, found, expected) => {
  compared += 1;
  if (JSON.stringify(found) !== JSON.stringify(expected)) wrong.push(`${what}: ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
};

// RFC 7386, appendix A.
const cases = [
  [{ a: "b" }, { a: "c" }, { a: "c" }], [{ a: "b" }, { b: "c" }, { a: "b", b: "c" }], [{ a: "b" }, { a: null }, {}],
  [{ a: "b", b: "c" }, { a: null }, { b: "c" }], [{ a: ["b"] }, { a: "c" }, { a: "c" }], [{ a: "c" }, { a: ["b"] }, { a: ["b"] }],
  [{ a: { b: "c" } }, { a: { b: "d", c: null } }, { a: { b: "d" } }], [{ a: [{ b: "c" }] }, { a: [1] }, { a: [1] }],
  [["a", "b"], ["c", "d"], ["c", "d"]], [{ a: "b" }, ["c"], ["c"]], [{ a: "foo" }, null, null], [{ a: "foo" }, "bar", "bar"],
  [{ e: null }, { a: 1 }, { e: null, a: 1 }], [[1, 2], { a: "b", c: null }, { a: "b" }], [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
];
for (const [target, patch, expected] of cases) is(`merge ${JSON.stringify([target, patch])}`, state.merge(target, patch), expected);
const before = { a: { x: 1 }, b: { y: 2 } };
const after = state.merge(before, { a: { x: 3 } });
is("what a patch does not name is the very same", [after.b === before.b, before.a.x, state.merge(before, { a: { x: 1 } }) === before], [true, 1, true]);
is("pauses grow and end", [0, 1, 2, 9].map(state.pause), [500, 1000, 2000, 10_000]);

is("spans", [400, 12_000, 180_000, 7_200_000, 172_800_000].map(words.span), ["0.4 s", "12 s", "3 min", "2 h", "2 d"]);
is("ago", [words.ago(1000, 1500), words.ago(1000, 6400)], ["just now", "5 s ago"]);
is("bytes", [0, 812, 1536, 8 * 2 ** 30, 150 * 2 ** 20].map(words.bytes), ["0 B", "812 B", "1.5 KiB", "8 GiB", "150 MiB"]);
is("lists", [[], ["a"], ["a", "b"], ["a", "b", "c"]].map(words.listed), ["", "a", "a and b", "a, b and c"]);
is("milliseconds", [0.2444, 1.26, 18.4, undefined].map(words.milliseconds), ["0.24 ms", "1.3 ms", "18 ms", "not measured"]);

const node = (name, what = "member") => ({ name, state: what, containers: [], addresses: {}, domain: [] });
const survives = { nodes: 1, hosts: 1, domains: [], sentence: "any one node" };
const well = {
  ...state.EMPTY, about: { node: "a", networks: ["front"] },
  standing: { quorum: true, members: ["a", "b"], warnings: [], survives }, nodes: { a: node("a"), b: node("b") },
};
is("nothing is wrong", [judge.problems(well), judge.health(well)], [[], { tone: "good", title: "Everything is well" }]);
const dead = { class: "host-dead", sentence: "b is dead", nodes: ["b"], over: false };
const failing = {
  ...well, verdicts: { list: [{ class: "link-degraded", sentence: "the link is slow", nodes: ["a", "b"], network: "front" }, dead] },
  nodes: { a: node("a"), b: node("b", "suspected") }, standing: { ...well.standing, warnings: ["x is under-protected", "x is lost: no copy"] },
  containers: { x: { name: "x", node: "b", state: "lost", latest: { copies: [{ node: "a" }, { node: "gone" }] } } },
};
const found = judge.problems(failing);
is("the worst comes first", found.map((one) => [one.level, one.view]), [["bad", "nodes"], ["bad", "containers"], ["warn", "links"], ["warn", "containers"]]);
is("in one sentence", judge.health(failing), { tone: "bad", title: "4 things need attention" });
is("copies on nodes that are gone do not count", judge.holders(failing.containers.x, failing.nodes), ["a"]);
is("nor do those on its own node", judge.holders({ ...failing.containers.x, node: "a" }, failing.nodes), []);

const bare = { name: "y", node: "a", state: "running", copies_wanted: 2, latest: { copies: [{ node: "b" }, { node: "a" }] } };
is("a copy that is missing is told", judge.problems({ ...well, containers: { y: bare } }).map((one) => one.text), ["y has 1 of 2 copies on other nodes"]);

is("arrow keys step over the diagonal", [[0, 1, "ArrowRight"], [0, 1, "ArrowDown"], [1, 0, "ArrowRight"], [0, 1, "ArrowLeft"], [0, 2, "ArrowRight"], [2, 1, "Home"], [2, 0, "End"], [0, 1, "x"]]
  .map(([row, column, key]) => links.moved(row, column, key, 3)), [[0, 2], [2, 1], [1, 2], null, null, [2, 0], [2, 1], null]);
is("of two nodes there are two cells", [links.moved(0, 1, "ArrowDown", 2), links.moved(0, 1, "ArrowLeft", 2)], [null, null]);
const up = (ms, loss = 0) => ({ state: "up", round_trip_ms: ms, loss_percent: loss });
is("heat", [up(0.3), up(0.9), up(3), up(40), up(0.3, 7), { state: "down" }, undefined].map((link) => links.heat(link, 0.3)),
  ["heat-0", "heat-0", "heat-2", "heat-3", "heat-2", "down", "none"]);
is("the median is usual", links.typical({ a: { b: { n: up(1) } }, b: { a: { n: up(9) } }, c: { a: { n: up(2) } } }, "n"), 2);

const states = (left, right) => ({ a: { b: { front: { state: left[0] }, back: { state: left[1] } } }, b: { a: { front: { state: right[0] }, back: { state: right[1] } } } });
is("the worst of two directions, the best of the networks", [
  map.worst(states(["up", "up"], ["up", "up"]), "a", "b"), map.worst(states(["up", "up"], ["down", "up"]), "a", "b"),
  map.worst(states(["up", "down"], ["down", "up"]), "a", "b"), map.worst({}, "a", "b") ?? "not told",
], ["up", "degraded", "down", "not told"]);
const places = map.layout(5, 700, 400, { x: 80, y: 40 });
is("every node is inside the drawing", places.every(({ x, y }) => x >= 79 && x <= 621 && y >= 39 && y <= 361), true);

is("long names lose their middle", ["alpha", "storage-node-017"].map((name) => map.shortened(name, 9)), ["alpha", "stor…-017"]);

is("tokens", [session.tokenIn("#token=ab12"), session.tokenIn("#nodes"), session.tokenIn("#token=a&b")], ["ab12", null, null]);
is("roles", [session.may({ role: "operate" }, "read"), session.may({ role: "read" }, "operate"), session.may(null, "read")], [true, false, false]);

const event = { id: "n/1/t/7", source: "/clusters/c/nodes/beta", type: "steadfast.disk.usage", subject: "/var", time: "2026-11-22T10:00:00.000000Z", data: { percent: 91, path: "/var", note: "a b" } };
const line = events.line(event);
is("an event as a line", [line.node, line.type, line.subject, line.fields, line.tone], ["beta", "disk.usage", "/var", "percent=91 path=/var note=\"a b\"", "idle"]);
is("no event twice", events.added(events.added([], event), event).length, 1);
let many = [];
for (let number = 0; number < events.KEPT + 5; number += 1) many = events.added(many, { ...event, id: String(number) });
is("no more than are kept", [many.length, many[0].id], [events.KEPT, String(events.KEPT + 4)]);

is("a page is asked for, not everything", [programs.pageOf(programs.SHELF), programs.pageOf({ ...programs.SHELF, doing: "parked", after: "a/1 ü" })],
  ["/v1/episodes?limit=50", "/v1/episodes?doing=parked&after=a%2F1+%C3%BC&limit=50"]);
is("a key may have slashes", programs.addressOf("order/17/a b"), "/v1/episodes/order/17%2Fa%20b");
const held = {
  name: "a/1", doing: "paused", peers: [{ name: "b/2", messages: [{ seq: 4, step: "ack" }] }],
  events: [{ kind: "go", source: "c/3" }, { kind: "asked" }, { kind: "undeliverable", source: "b/2" }],
  outboxes: [{ to: "d/4", attempts: 2, messages: [{ seq: 1, step: "confirm" }, { seq: 2, kind: "pay", step: "message" }, { seq: 3, step: "given-up" }] }],
};
const drawn = sequence.rows(held, [{ episode: 1, kind: "start", at_unix_ms: 1 }, { episode: 2, kind: "go", source: "b/2", at_unix_ms: 2 }]);
is("every exchange is told with how far it has come", drawn.map((one) => [one.from, one.to, one.label, one.made, one.tone]), [
  ["b/2", "a/1", "go", 4, "done"], ["b/2", "a/1", "number 4", 2, "busy"], ["c/3", "a/1", "go", 0, "warn"], ["b/2", "a/1", "undeliverable", 0, "bad"],
  ["a/1", "d/4", "number 1", 3, "warn"], ["a/1", "d/4", "pay (2)", 1, "warn"], ["a/1", "d/4", "number 3", 1, "bad"],
]);
is("the four steps go to and fro", sequence.arrows(drawn[1]).map((one) => [one.isBack, one.isMade]), [[false, true], [true, true], [false, false], [true, false]]);
is("life lines", [sequence.lines("a/1", drawn), sequence.lines("a/1", [1, 2, 3, 4, 5].map((key) => ({ from: `x/${key}`, to: "a/1" })))],
  [["a/1", "d/4", "b/2", "c/3"], ["a/1", "x/5", "x/4", "x/3", "others"]]);
is("no more rows than can be drawn", sequence.rows(held, Array.from({ length: 40 }, (_, episode) => ({ episode, kind: "go", source: "b/2", at_unix_ms: 2 }))).length, sequence.ROWS_MAX);

const place = document.createElement("div");
const list = (names) => dom.h("ul", null, names.map((name) => dom.h("li", { key: name }, name)));
dom.render(place, list(["a", "b", "c"]));
const [, second] = place.firstChild.children;
dom.render(place, list(["c", "b", "d"]));
is("keyed elements stay", [[...place.firstChild.children].map((item) => item.textContent), place.firstChild.children[1] === second], [["c", "b", "d"], true]);
dom.render(place, dom.h("p", { title: "x" }, "<b>not markup</b>", false, null, 0));
is("texts are never markup", [place.querySelector("b"), place.textContent, place.firstChild.title], [null, "<b>not markup</b>0", "x"]);

return wrong.length ? wrong.join("\n") : `${compared} comparisons hold`;
