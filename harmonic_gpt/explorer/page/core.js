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
  const DEFAULTS = { view: null, text: 1, position: null, token: null, color: null, map: null, task: null, by: "gap" };
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
    element.append(...children.filter((child) => child !== null && child !== undefined)); // an absent child is left out
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
  // Lines over layers as SVG. series: [{ values, color, name, dash }]; mark(i) moves a vertical line
  function plot(title, ticks, series, range) {
    const [w, t, left, bottom, top] = [300, 150, 46, 22, 42];
    const all = series.flatMap(({ values }) => values);
    let [low, high] = range ?? [Math.min(...all), Math.max(...all)];
    if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
    const x = (i, of = ticks.length) => left + ((w - left - 12) * i) / Math.max(1, of - 1);
    const y = (v) => top + (t - top - bottom) * (1 - (v - low) / (high - low));
    const [ink, soft] = [rgba(color("ink")), rgba(color("soft"))];
    const text = (content, attributes) => svg("text", { "font-size": 11, fill: soft, "font-family": "Arial, sans-serif", ...attributes }, content);
    const image = svg("svg", { viewBox: `0 0 ${w} ${t}`, role: "img", "aria-label": title });
    image.append(text(title, { x: 4, y: 13, fill: ink, "font-weight": 600 }));
    for (const value of [low, high]) image.append(text(number(value), { x: left - 6, y: y(value) + 4, "text-anchor": "end" }), svg("line", { x1: left, x2: w - 12, y1: y(value), y2: y(value), stroke: rgba(color("line")) }));
    ticks.forEach((tick, i) => image.append(text(String(tick), { x: x(i), y: t - 6, "text-anchor": "middle" })));
    let named = 4;
    for (const { values, color: stroke, name, dash } of series) {
      image.append(svg("polyline", { points: values.map((v, i) => `${x(i, values.length)},${y(v)}`).join(" "), fill: "none", stroke, "stroke-width": 2.2, "stroke-dasharray": dash ?? "none" }));
      values.forEach((v, i) => image.append(svg("circle", { cx: x(i, values.length), cy: y(v), r: 2.8, fill: stroke }, svg("title", {}, number(v)))));
      if (name) {
        image.append(text(`${dash ? "- - " : "— "}${name}`, { x: named, y: 29, fill: stroke, "font-weight": 600 }));
        named += 26 + 6.2 * name.length;
      }
    }
    const line = svg("line", { y1: top - 4, y2: t - bottom + 4, stroke: ink, "stroke-width": 1, opacity: 0 });
    image.append(line);
    image.mark = (i) => { line.setAttribute("x1", x(i)); line.setAttribute("x2", x(i)); line.setAttribute("opacity", 0.5); };
    return image;
  }

  const rgba = ([r, g, b], alpha = 1) => `rgba(${r},${g},${b},${alpha})`;

  // Viridis (Smith, van der Walt 2015), which all color vision can order, at nine places; without the end that the
  // background would swallow
  const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"]
    .map((text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16)));
  function ramp(share) {
    const [from, to] = explorer.dark() ? [0.25, 1] : [0, 0.88];
    const at = (from + (to - from) * Math.min(Math.max(share, 0), 1)) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
    return VIRIDIS[low].map((c, i) => Math.round(c + (VIRIDIS[low + 1][i] - c) * (at - low)));
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
    h, svg, plot, choice, label, number, percent, message, color, rgba, ramp, fit,
    manifest: null, vocabularies: null, texts: [],
    dark: () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark",
    // A model's name without what both names begin with, for narrow places
    shortName(m) {
      const [a, b] = explorer.manifest.models.map((model) => model.name);
      let same = 0;
      while (same < Math.min(a.length, b.length) && a[same] === b[same]) same++;
      const cut = a.slice(0, same).search(/[-_/. ][^-_/. ]*$/) + 1;
      return explorer.manifest.models[m].name.slice(cut) || explorer.manifest.models[m].name;
    },
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
