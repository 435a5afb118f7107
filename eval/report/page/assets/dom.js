// Elements, data and numbers. Texts go in as text nodes only, never as HTML.

const byId = (id) => document.getElementById(id);
const cache = new Map();

/** The parsed content of a data block; parsed when it is first asked for. */
function data(id) {
  if (!cache.has(id)) {
    const block = byId(id);
    cache.set(id, block ? JSON.parse(block.textContent) : null);
  }
  return cache.get(id);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** A labelled choice; options are [value, text]. */
function choice(label, options, onchange) {
  const select = make("select", { onchange: () => onchange(select.value) },
    options.map(([value, text]) => make("option", { value }, text)));
  return { label: make("label", {}, `${label} `, select), select };
}

/** Three significant digits, never in exponents. */
function told(value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size < 5e-6) return "0";
  const digits = Math.min(Math.max(2 - Math.floor(Math.log10(size)), size < 1000 ? 1 : 0), 5);
  return value.toFixed(digits);
}

/** "inf" and "-inf", which JSON has no numbers for. */
const number = (value) => (value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);

/** Calls `work` when the element comes near the window, once. */
function whenSeen(element, work) {
  const observer = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      observer.disconnect();
      work();
    }
  }, { rootMargin: "400px" });
  observer.observe(element);
}
