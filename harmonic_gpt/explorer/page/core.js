// Data, state and small helpers that every view shares. Classic scripts, not modules: a page opened from the file
// system may load no modules.
"use strict";
const explorer = (() => {
  const SCHEMA_VERSION = 1;
  const TYPES = { float32: Float32Array, int32: Int32Array, uint32: Uint32Array, uint16: Uint16Array, uint8: Uint8Array };

  // --- data files: each is a script that calls receive(name, value) ---
  const values = new Map();
  const pending = new Map();

  function bytesOf(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  // Packed arrays anywhere in a value become typed arrays with a shape
  function unpack(value) {
    if (Array.isArray(value)) return value.length && typeof value[0] === "object" ? value.map(unpack) : value;
    if (value === null || typeof value !== "object") return value;
    if (typeof value.base64 === "string") {
      const array = new TYPES[value.dtype](bytesOf(value.base64).buffer);
      array.shape = value.shape;
      return array;
    }
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, unpack(inner)]));
  }

  function receive(name, value) {
    values.set(name, unpack(value));
  }

  function load(name) {
    if (values.has(name)) return Promise.resolve(values.get(name));
    if (!pending.has(name)) {
      pending.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => resolve(values.get(name));
        script.onerror = () => { pending.delete(name); reject(new Error(`data/${name}.js is missing`)); };
        document.head.append(script);
      }));
    }
    return pending.get(name);
  }

  // --- state: what is chosen; it is the address, too ---
  const DEFAULTS = { view: null, text: 1, position: null, token: null, color: null, map: "pca", task: null, by: "gap" };
  const state = { ...DEFAULTS };
  const listeners = [];

  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const next = { ...DEFAULTS };
    for (const key of Object.keys(DEFAULTS)) {
      if (!given.has(key)) continue;
      const value = given.get(key);
      next[key] = key === "text" || key === "position" ? Math.max(1, Math.round(Number(value)) || 1) : value;
    }
    return next;
  }

  function toAddress() {
    const parts = Object.keys(DEFAULTS).filter((key) => state[key] !== null && state[key] !== DEFAULTS[key]);
    const text = parts.map((key) => `${key}=${encodeURIComponent(state[key])}`).join("&");
    if (location.hash.slice(1) !== text) history.replaceState(null, "", `#${text}`);
  }

  function set(change) {
    const changed = new Set(Object.keys(change).filter((key) => state[key] !== change[key]));
    if (!changed.size) return;
    Object.assign(state, change);
    toAddress();
    for (const listener of listeners) listener(changed);
  }

  // --- elements ---
  function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (key === "style") for (const [name, v] of Object.entries(value)) element.style.setProperty(name, v);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  const SVG = "http://www.w3.org/2000/svg";
  function svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // Buttons of which one is pressed: [[value, label]]
  function choice(label, options, current, onchange) {
    const group = h("div", { class: "choice", role: "group", "aria-label": label });
    group.select = (value) => {
      for (const button of group.children) button.setAttribute("aria-pressed", String(button.dataset.value === String(value)));
    };
    for (const [value, text, title] of options) {
      group.append(h("button", { "data-value": value, title, onclick: () => onchange(value) }, text));
    }
    group.select(current);
    return group;
  }

  // --- text of tokens and numbers ---
  // A token as a label: its space, its line breaks and its tabs to be seen
  function label(text) {
    return text.replace(/^ /, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍").replace(/^( +)$/, (s) => "·".repeat(s.length));
  }

  function number(value, digits = 3) {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size && (size >= 1e5 || size < 1e-3)) return value.toExponential(1);
    return size >= 100 ? value.toFixed(1) : value.toFixed(size >= 10 ? Math.max(1, digits - 1) : digits);
  }

  function percent(p) {
    return p >= 0.9995 ? "100 %" : p >= 0.1 ? `${(100 * p).toFixed(1)} %` : p >= 1e-4 ? `${(100 * p).toFixed(2)} %` : `${(100 * p).toExponential(0)} %`;
  }

  function message(text) {
    const place = document.getElementById("message");
    place.textContent = text;
    place.classList.add("shown");
    clearTimeout(message.timer);
    message.timer = setTimeout(() => place.classList.remove("shown"), 5000);
  }

  // --- colors: those of the style sheet, as numbers ---
  function color(name) {
    const text = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const full = text.length === 4 ? text.replace(/[0-9a-f]/gi, (c) => c + c) : text;
    return [1, 3, 5].map((i) => parseInt(full.slice(i, i + 2), 16));
  }
  const rgba = ([r, g, b], alpha = 1) => `rgba(${r},${g},${b},${alpha})`;

  // Cividis (Nuñez, Anderton, Renslow 2018), readable for all color vision, at nine places
  const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#fee838"]
    .map((text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16)));
  function ramp(share) {
    const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
    const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
    return CIVIDIS[low].map((c, i) => c + (CIVIDIS[low + 1][i] - c) * (at - low));
  }

  // A canvas of w x h CSS pixels, sharp on every screen
  function fit(canvas, width, height) {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [w, t] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== t) { canvas.width = w; canvas.height = t; }
    return ratio;
  }

  return {
    SCHEMA_VERSION, KEYS: ["a", "b"], views: {}, state, listeners, receive, unpack, load, values, set, fromAddress, toAddress,
    h, svg, choice, label, number, percent, message, color, rgba, ramp, fit,
    manifest: null, vocabularies: null, texts: [],
    dark: () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark",
    modelColor: (m) => color(explorer.KEYS[m]),
    textData: () => values.get(explorer.texts[explorer.state.text - 1]?.key),
    tokenText: (m, i) => explorer.vocabularies[m].tokens[i],
    // The same token in the other model: by number, or by its text where the vocabularies differ
    link(from, to, token) {
      const { vocabularies } = explorer;
      if (token === null || from === to || vocabularies[from] === vocabularies[to]) return token;
      return vocabularies[to].byText.get(vocabularies[from].tokens[token]) ?? null;
    },
    findToken(m, text) {
      const { byText, tokens } = explorer.vocabularies[m];
      for (const form of [` ${text}`, text]) if (byText.has(form)) return byText.get(form);
      const low = text.toLowerCase();
      const at = tokens.findIndex((t) => t.trim().toLowerCase() === low);
      return at < 0 ? null : at;
    },
  };
})();
