// Who looks: a token for a session, and what the session may do.
//
// The token stands behind `#` in the address, which browsers send to nobody; it is taken from there and forgotten. The
// session itself is a cookie that no script can read.

import { h } from "./dom.js";

const ROLES = ["read", "operate", "admin"];

/** Whether a session may do what needs this role. */
export function may(session, role) {
  return ROLES.indexOf(session?.role) >= ROLES.indexOf(role);
}

/** The token in an address, if there is one. */
export function tokenIn(hash) {
  const match = /^#token=([0-9A-Za-z]+)$/.exec(hash);
  return match ? match[1] : null;
}

/** Asks the node; the answer's JSON, or an error with its sentence. */
export async function ask(method, path, body) {
  const request = { method, headers: { accept: "application/json" } };
  if (body !== undefined) {
    request.headers["content-type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, request);
  } catch {
    throw Object.assign(new Error("this node does not answer"), { status: 0 });
  }
  const json = await answer.json().catch(() => null);
  if (!answer.ok) {
    const message = json?.message ?? `this node answers with ${answer.status}`;
    throw Object.assign(new Error(message), { status: answer.status, code: json?.code });
  }
  return json;
}

/** The session that there is: `{session}`, `{signedOut: true}`, or neither while the node does not answer. */
export async function session() {
  try {
    return { session: await ask("GET", "/v1/page/session") };
  } catch (error) {
    return { signedOut: error.status === 401 };
  }
}

/** Exchanges a token for a session. */
export function signIn(token) {
  return ask("POST", "/v1/page/session", { token });
}

/** Ends the session. */
export function signOut() {
  return ask("DELETE", "/v1/page/session");
}

/** What whoever is not signed in sees. */
export function signInPanel(state, onToken) {
  const submit = (event) => {
    event.preventDefault();
    onToken(new FormData(event.target).get("token").trim());
  };
  return h("main", { class: "gate", id: "main" },
    h("div", { class: "card gate-card" },
      h("h1", null, "Sign in"),
      h("p", null, "On this node, run"),
      h("pre", null, h("code", null, "steadfast page")),
      h("p", null, "and open the address that it prints, or paste its token here. ",
        "With ", h("code", null, "--role operate"), " you may also checkpoint, move and drain."),
      h("form", { onsubmit: submit },
        h("label", { for: "token" }, "Token"),
        h("input", { id: "token", name: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false" }),
        h("button", { class: "primary", type: "submit" }, "Sign in")),
      h("p", { class: "problem-text", role: "alert" }, state.gateProblem ?? "")));
}
