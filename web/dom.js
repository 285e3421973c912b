// Elements from plain descriptions, and the least change that makes one of another.
//
// It never writes HTML: every text is a text node, so what a node or a container is called can't become markup. Keyed
// children keep their elements, and with them focus and scrolling. Nothing here knows what is shown.

const SVG = "http://www.w3.org/2000/svg";

/** Describes an element: `h("p", {class: "note"}, "text", h("b", null, "bold"))`. Absent and false children are left out. */
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, key: props?.key, children: described(children) };
}

/** Makes `root` hold what `tree` describes. */
export function render(root, tree) {
  const before = root.shownTree ? [root.shownTree] : [];
  updateChildren(root, before, [tree], root.namespaceURI === SVG);
  root.shownTree = tree;
}

function described(children) {
  const flat = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== true);
  return flat.map((child) => (typeof child === "object" ? child : { text: String(child) }));
}

function create(node, insideSvg) {
  if (node.text !== undefined) {
    node.element = document.createTextNode(node.text);
    return;
  }
  const isSvg = insideSvg || node.tag === "svg";
  node.element = isSvg ? document.createElementNS(SVG, node.tag) : document.createElement(node.tag);
  for (const [name, value] of Object.entries(node.props)) setProperty(node.element, name, undefined, value);
  for (const child of node.children) {
    create(child, isSvg);
    node.element.append(child.element);
  }
}

function update(before, node, insideSvg) {
  node.element = before.element;
  if (node.text !== undefined) {
    if (before.text !== node.text) node.element.data = node.text;
    return;
  }
  if (node.props.memo && isSame(before.props.memo, node.props.memo)) {
    node.children = before.children;
    node.props = before.props;
    return;
  }
  for (const name of Object.keys(before.props)) {
    if (!(name in node.props)) setProperty(node.element, name, before.props[name], undefined);
  }
  for (const [name, value] of Object.entries(node.props)) {
    if (before.props[name] !== value) setProperty(node.element, name, before.props[name], value);
  }
  updateChildren(node.element, before.children, node.children, insideSvg || node.tag === "svg");
}

function updateChildren(element, before, after, isSvg) {
  const keyed = new Map(before.filter((node) => node.key !== undefined).map((node) => [node.key, node]));
  const unkeyed = before.filter((node) => node.key === undefined);
  const kept = new Set();
  let next = 0;
  for (const node of after) {
    let match;
    if (node.key !== undefined) {
      match = keyed.get(node.key);
    } else {
      while (next < unkeyed.length && !isAlike(unkeyed[next], node)) next += 1;
      match = unkeyed[next];
      next += 1;
    }
    if (match && isAlike(match, node) && !kept.has(match)) {
      kept.add(match);
      update(match, node, isSvg);
    } else {
      create(node, isSvg);
    }
  }
  for (const node of before) {
    if (!kept.has(node)) node.element.remove();
  }
  after.forEach((node, index) => {
    const there = element.childNodes[index];
    if (there !== node.element) element.insertBefore(node.element, there ?? null);
  });
}

function isAlike(left, right) {
  return left.tag === right.tag && (left.text === undefined) === (right.text === undefined);
}

function isSame(left, right) {
  return Array.isArray(left) && left.length === right.length && left.every((value, index) => Object.is(value, right[index]));
}

function setProperty(element, name, before, value) {
  if (name === "key" || name === "memo") return;
  if (name.startsWith("on")) {
    listen(element, name.slice(2), value);
  } else if (name === "value") {
    if (element.value !== value) element.value = value ?? "";
  } else if (name === "vars") {
    for (const [variable, to] of Object.entries(value ?? {})) element.style.setProperty(variable, String(to));
  } else if (value === undefined || value === null || value === false) {
    element.removeAttribute(name);
  } else if (value !== before) {
    element.setAttribute(name, value === true ? "" : String(value));
  }
}

/** One listener for each kind of event, which calls whatever was described last. */
function listen(element, kind, handler) {
  const handlers = (element.describedHandlers ??= {});
  if (!(kind in handlers)) element.addEventListener(kind, (event) => handlers[kind]?.(event));
  handlers[kind] = handler;
}
