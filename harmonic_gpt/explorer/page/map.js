// Map: the centers of all tokens in two dimensions, both models side by side and linked by token.
"use strict";
// What the map and the walk both draw: points with labels, as towns on a map appear with their names
explorer.mapKit = (() => {
  const { rgba, label } = explorer;
  const PARTS = ["part-0", "part-1", "part-2", "part-3", "part-4"]; // colors of the style sheet

  // Tokens in the order in which they get a label: common ones first, else long centers
  function ranked(m) {
    const vocabulary = explorer.vocabularies[m];
    const by = vocabulary.counts ?? explorer.maps[m].norms;
    vocabulary.ranked ??= Uint32Array.from(by.keys()).sort((x, y) => by[y] - by[x]);
    return vocabulary.ranked;
  }

  // A text with an outline of the paper's color, so that it is read above points
  function write(context, text, x, y, { color = explorer.color("ink"), size = 12, weight = 500, alpha = 1 } = {}) {
    context.font = `${weight} ${size}px ${getComputedStyle(document.body).fontFamily}`;
    context.lineJoin = "round";
    context.lineWidth = 3.5;
    context.strokeStyle = rgba(explorer.color("panel"), 0.9 * alpha);
    context.strokeText(text, x, y);
    context.fillStyle = rgba(color, alpha);
    context.fillText(text, x, y);
  }

  function ring(context, [x, y], radius, color, width = 2) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.lineWidth = width;
    context.strokeStyle = rgba(color);
    context.stroke();
  }

  // Room for labels: a coarse grid of what is taken
  function room(panel) {
    const cell = 16;
    const [columns, used] = [Math.ceil(panel.size().width / cell) + 1, new Set()];
    return (x, y, w, t, force = false) => {
      const cells = [];
      for (let r = Math.floor(y / cell); r <= Math.floor((y + t) / cell); r++) for (let c = Math.floor(x / cell); c <= Math.floor((x + w) / cell); c++) cells.push(r * columns + c);
      if (!force && cells.some((c) => used.has(c))) return false;
      cells.forEach((c) => used.add(c));
      return true;
    };
  }

  // A token's name at its point, if there is room
  function mark(context, panel, claim, i, text, { size = 12, force = false, dx = 7, ...options } = {}) {
    const [x, y] = panel.at(i);
    const { width, height } = panel.size();
    if (x < -20 || y < -20 || x > width + 20 || y > height + 20) return;
    if (claim(x + dx - 2, y - size / 2 - 2, 0.56 * size * text.length, size + 4, force)) write(context, text, x + dx, y + 0.36 * size, { size, weight: 600, ...options });
  }

  // Names of as many tokens as have room
  function names(context, panel, m, claim, { most = 60, alpha = 0.8 } = {}) {
    const { width, height } = panel.size();
    let [placed, tried] = [0, 0];
    const { tokens } = explorer.vocabularies[m];
    const ink = explorer.color("ink");
    for (const i of ranked(m)) {
      const [x, y] = panel.at(i);
      if (x < 4 || y < 12 || x > width - 30 || y > height - 6) continue;
      if (++tried > 900 || placed >= most) break;
      const text = label(tokens[i]).replace(/^·/, "");
      if (!text.trim() || x + 5 + 6.2 * text.length > width || !claim(x + 4, y - 8, 6.2 * text.length, 13)) continue;
      write(context, text, x + 5, y + 4, { color: ink, size: 11, weight: 450, alpha });
      placed++;
    }
  }

  // (V, 4) colors of all points of a model by what was chosen, and (V,) sizes
  function colors(m, by, task) {
    const { counts, parts, tasks } = explorer.vocabularies[m];
    const { norms } = explorer.maps[m];
    const size = norms.length;
    const [tints, sizes] = [new Uint8Array(4 * size), new Float32Array(size).fill(1)];
    const put = (i, [r, g, b], alpha) => tints.set([r, g, b, 255 * alpha], 4 * i);
    const faint = explorer.color("faint");
    const dense = size > 20000 ? 0.55 : 0.75;
    if (by === "frequency" && counts) {
      const sorted = counts.slice().sort();
      const [low, high] = [0.05, 0.999].map((share) => Math.log1p(sorted[Math.floor(share * (size - 1))]));
      for (let i = 0; i < size; i++) put(i, explorer.ramp((Math.log1p(counts[i]) - low) / Math.max(high - low, 1e-9)), dense);
    } else if (by === "norm") {
      const sorted = norms.slice().sort();
      const [low, high] = [sorted[Math.floor(0.01 * size)], sorted[Math.floor(0.99 * (size - 1))]];
      for (let i = 0; i < size; i++) put(i, explorer.ramp((norms[i] - low) / Math.max(high - low, 1e-12)), dense);
    } else if (by === "part" && parts && !task) {
      for (let i = 0; i < size; i++) {
        if (parts[i]) { put(i, explorer.color(PARTS[parts[i]]), 1); sizes[i] = 1.6; } else put(i, faint, 0.3);
      }
    } else if (by === "model") {
      for (let i = 0; i < size; i++) put(i, explorer.modelColor(m), 0.3);
    } else {
      for (let i = 0; i < size; i++) put(i, faint, task ? 0.3 : dense);
    }
    if (task && tasks[task]) {
      for (const [a, b] of tasks[task].pairs) {
        put(a, explorer.color("part-1"), 1);
        put(b, explorer.color("part-2"), 1);
        sizes[a] = sizes[b] = 1.8;
      }
    }
    return [tints, sizes];
  }

  return { PARTS, write, ring, room, mark, names, colors };
})();

explorer.views.map = (() => {
  const { h, state, set, label, number, percent, rgba, choice } = explorer;
  const { ring, room, mark, names, colors, PARTS } = explorer.mapKit;
  let root, panels = [], search, found, controls, key, tables, hovered = [null, null], shown = {};

  const available = () => ["pca", "umap"].filter((name) => explorer.maps.every((map) => map.coordinates[name]));
  // UMAP keeps more neighbors, so it comes first here; the walk begins with PCA, which places states exactly
  const projection = () => (available().includes(state.map) ? state.map : available().at(-1));
  const coloring = () => state.color ?? (explorer.vocabularies[0].counts ? "frequency" : "norm");
  const selected = (m) => (state.token === null ? null : explorer.link(0, m, explorer.findToken(0, state.token)) ?? (m === 1 ? explorer.findToken(1, state.token) : null));

  function build(element) {
    root = element;
    const [vocabulary] = explorer.vocabularies;
    search = h("input", { type: "search", placeholder: "Search a token ( / )", "aria-label": "Search a token", autocomplete: "off", spellcheck: "false" });
    found = h("div", { class: "found", role: "listbox", "aria-label": "Tokens found", hidden: true });
    search.addEventListener("input", () => renderFound());
    search.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && found.firstChild) found.firstChild.click();
      if (event.key === "ArrowDown" && found.firstChild) { found.firstChild.focus(); event.preventDefault(); }
      if (event.key === "Escape") { search.value = ""; renderFound(); }
    });
    found.addEventListener("keydown", (event) => {
      const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      if (next) { (document.activeElement[next] ?? search).focus(); event.preventDefault(); event.stopPropagation(); }
      if (event.key === "Escape") { search.focus(); found.hidden = true; }
    });
    const maps = { pca: ["pca", "PCA", "The two directions of largest variance: distances are true, as far as two dimensions show them"], umap: ["umap", "UMAP", "Keeps neighbors together; distances between groups mean little"] };
    const projections = choice("Map", available().map((name) => maps[name]), projection(), (map) => set({ map }));
    const options = [["frequency", "frequency in training text", vocabulary.counts], ["norm", "norm of the center", true], ["part", "part of speech", vocabulary.parts], ["plain", "one color", true]];
    const byColor = h("select", { "aria-label": "Color of points", onchange: (event) => set({ color: event.target.value }) }, ...options.filter(([, , known]) => known).map(([value, text]) => h("option", { value }, text)));
    const byTask = h("select", { "aria-label": "Word pairs", onchange: (event) => set({ task: event.target.value || null }) }, h("option", { value: "" }, "no word pairs"),
      ...Object.entries(vocabulary.tasks).map(([name, task]) => h("option", { value: name }, `${name} (${task.used} of ${task.of} pairs)`)));
    controls = { projections, byColor, byTask };
    key = h("div", { class: "legend" });
    const bar = h("div", { class: "row controls" }, h("div", { class: "search" }, search, found), projections, h("label", {}, "Color ", byColor), h("label", {}, "Lines ", byTask), key);
    const boxes = explorer.manifest.models.map((model, m) => {
      const box = h("div", { class: "map-panel" });
      const caption = h("p", { class: "small caption" });
      panels.push(null);
      return h("figure", { class: `map-model model-${explorer.KEYS[m]}` }, h("figcaption", {}, h("h2", {}, model.name, h("span", { class: "small" }, ` ${model.head}`)), caption), box);
    });
    tables = h("div", { class: "pair map-tables" });
    root.append(bar, h("div", { class: "maps" }, ...boxes), tables);
    boxes.forEach((figure, m) => {
      panels[m] = new explorer.Points(figure.querySelector(".map-panel"), {
        label: `Map of the centers of ${explorer.manifest.models[m].name}; arrow keys move it, + and - zoom`,
        draw: (context, panel) => draw(context, panel, m),
        onhover: (token) => hover(m, token),
        onpick: (token) => set({ token: plain(m, token) }),
      });
    });
  }

  // A token as the address names it
  function plain(m, token) {
    const text = explorer.tokenText(m, token);
    const bare = text.replace(/^ /, "");
    return bare && explorer.findToken(m, bare) === token ? bare : text;
  }

  function hover(m, token) {
    const next = [explorer.link(m, 0, token), explorer.link(m, 1, token)];
    if (next[0] === hovered[0] && next[1] === hovered[1]) return;
    hovered = next;
    panels.forEach((panel) => panel.request());
    renderTables();
  }

  function renderFound() {
    const text = search.value.trim().toLowerCase();
    found.hidden = !text;
    if (!text) return;
    const { tokens } = explorer.vocabularies[0];
    const hits = [];
    for (let i = 0; i < tokens.length; i++) {
      const at = tokens[i].toLowerCase().indexOf(text);
      if (at >= 0) hits.push([tokens[i].trim().length - text.length, at, i]);
    }
    hits.sort((x, y) => x[0] - y[0] || x[1] - y[1] || x[2] - y[2]);
    found.replaceChildren(...hits.slice(0, 30).map(([, , i]) => h("button", { role: "option", onclick: () => { set({ token: plain(0, i) }); found.hidden = true; search.value = ""; go(); } }, label(tokens[i]))));
    if (!hits.length) found.append(h("p", { class: "small" }, "no such token"));
  }

  // Bring the chosen token and its nearest into view
  function go() {
    panels.forEach((panel, m) => {
      const token = selected(m);
      if (token === null) return;
      const { places } = panel;
      const box = panel.box([token, ...nearestOf(m, token)].map((i) => [places[2 * i], places[2 * i + 1]]));
      panel.frame(panel.atLeast(box, 0.3), 0.15);
    });
  }

  const nearestOf = (m, token) => {
    const { nearest } = explorer.maps[m];
    const k = nearest.shape[1];
    return Array.from(nearest.subarray(token * k, token * k + k));
  };

  function draw(context, panel, m) {
    const [ink, accent] = [explorer.color("ink"), explorer.color("accent")];
    const claim = room(panel);
    const name = (i) => label(explorer.tokenText(m, i)).replace(/^·(?=.)/, "");
    const { tasks } = explorer.vocabularies[m];
    const [token, over] = [selected(m), hovered[m]];
    const focus = over ?? token;
    const line = (from, to, style, width) => {
      context.lineWidth = width;
      context.strokeStyle = style;
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
    };
    const pairs = state.task && tasks[state.task] ? tasks[state.task].pairs : [];
    for (const [a, b] of pairs) {
      const [from, to] = [panel.at(a), panel.at(b)];
      const style = context.createLinearGradient(...from, ...to);
      style.addColorStop(0, rgba(explorer.color("part-1"), 0.8));
      style.addColorStop(1, rgba(explorer.color("part-2"), 0.8));
      line(from, to, style, 1.2);
    }
    const near = focus === null ? [] : nearestOf(m, focus);
    near.forEach((i) => line(panel.at(focus), panel.at(i), rgba(ink, 0.35), 1));
    near.forEach((i) => ring(context, panel.at(i), 4, ink, 1.3));
    for (const [i, color] of [[token, accent], [over, ink]]) {
      if (i === null || (color === ink && i === token)) continue;
      ring(context, panel.at(i), 8, color, 3);
      mark(context, panel, claim, i, name(i), { size: 16, weight: 700, color, force: true, dx: 12 });
    }
    near.forEach((i) => mark(context, panel, claim, i, name(i), { size: 12.5 }));
    pairs.flat().forEach((i) => mark(context, panel, claim, i, name(i), { size: 12 }));
    names(context, panel, m, claim, { most: Math.round(panel.size().width / 11), alpha: focus === null && !pairs.length ? 0.85 : 0.3 });
  }

  function renderKey() {
    const by = coloring();
    const { counts, part_names, parts } = explorer.vocabularies[0];
    key.replaceChildren();
    if (state.task) key.append(swatch("part-1", "first word"), swatch("part-2", "second word"));
    if (by === "part" && parts && !state.task) key.append(...part_names.slice(1).map((name, i) => swatch(PARTS[i + 1], name)), swatch("faint", "not in the list"));
    else if (by === "frequency" || by === "norm") {
      const bar = h("span", { class: "ramp" }, ...Array.from({ length: 9 }, (_, i) => h("i", { style: { background: rgba(explorer.ramp(i / 8)) } })));
      let most = 0;
      if (by === "frequency") for (const c of counts) most = Math.max(most, c);
      key.append(h("span", {}, by === "frequency" ? "rare" : "short"), bar, h("span", {}, by === "frequency" ? `frequent (at most ${most.toLocaleString("en")} times)` : "long"));
    }
  }

  const swatch = (name, text) => h("span", { class: "swatch" }, h("i", { style: { background: `var(--${name})` } }), text);

  function renderTables() {
    tables.replaceChildren(...explorer.manifest.models.map((model, m) => {
      const token = hovered[m] ?? selected(m);
      const name = `card model-${explorer.KEYS[m]}`;
      if (token === null) return h("div", { class: name }, h("p", { class: "small" }, state.token === null ? "Choose a token: its ten nearest centers are listed here." : `${model.name} has no token “${state.token}”.`));
      const { nearest, scores, norms } = explorer.maps[m];
      const { counts } = explorer.vocabularies[m];
      const k = nearest.shape[1];
      const other = new Set(linkedNearest(1 - m, m, token));
      const rows = Array.from({ length: k }, (_, j) => {
        const i = nearest[token * k + j];
        return h("li", {}, h("button", { class: other.has(i) ? "both" : null, title: other.has(i) ? "among the nearest of the other model, too" : null, onclick: () => set({ token: plain(m, i) }) }, label(explorer.tokenText(m, i)), h("span", { class: "score" }, number(scores[token * k + j]))));
      });
      return h("div", { class: name }, h("h4", {}, "Nearest to ", h("code", {}, label(explorer.tokenText(m, token))), h("span", { class: "small" }, ` by ${model.nearest_by}; norm ${number(norms[token])}${counts ? `, ${counts[token].toLocaleString("en")} times in the training text` : ""}`)), h("ol", { class: "near" }, ...rows));
    }));
  }

  // The nearest of a token of model `to` in the other model `from`, as tokens of `to`
  function linkedNearest(from, to, token) {
    const there = explorer.link(to, from, token);
    return there === null ? [] : nearestOf(from, there).map((i) => explorer.link(from, to, i));
  }

  function update(changed) {
    const name = projection();
    const by = coloring();
    controls.projections.select(name);
    controls.byColor.value = by;
    controls.byTask.value = state.task ?? "";
    panels.forEach((panel, m) => {
      const [map, model] = [explorer.maps[m], explorer.manifest.models[m]];
      if (shown.name !== name) {
        panel.setPoints(map.coordinates[name]);
        panel.frame(null);
      }
      if (shown.by !== by || shown.task !== state.task || shown.name !== name || changed?.has("theme")) panel.setColors(...colors(m, by, state.task));
      const { kept, chance } = model.maps[name];
      root.querySelectorAll(".caption")[m].textContent = `${name === "pca" ? `PCA, ${percent(model.variance_share)} of the variance` : "UMAP"}; of a token's 10 nearest centers, ${percent(kept)} are among its 10 nearest here (by chance ${percent(chance)})`;
      panel.request();
    });
    const opened = shown.name === undefined;
    shown = { name, by, task: state.task };
    renderKey();
    renderTables();
    if (opened && state.token !== null) go();
  }

  return { title: "Map", needsText: false, build, update, focusSearch: () => search.focus(), panels };
})();
