// Lens: every layer and position of a text, read as its nearest tokens.
"use strict";
explorer.views.lens = (() => {
  const { h, state, set, label, number, percent, rgba } = explorer;
  let root, tables = [], detail, strips = [], data = null, hovered = null, start = 0, columns = 8;

  function build(element) {
    root = element;
    const parts = explorer.manifest.models.map((model, m) => {
      const strip = h("canvas", { class: "lens-strip", role: "img", "aria-label": `Agreement over the whole text, ${model.name}` });
      const table = h("table", { class: `lens-table model-${explorer.KEYS[m]}` });
      strips.push(strip);
      tables.push(table);
      strip.addEventListener("pointerdown", (event) => jump(event, strip));
      table.addEventListener("pointerover", (event) => hover(event.target.closest("td[data-t]")));
      table.addEventListener("focusin", (event) => hover(event.target.closest("td[data-t]")));
      table.addEventListener("pointerleave", () => hover(null));
      table.addEventListener("click", (event) => {
        const cell = event.target.closest("td[data-t]");
        if (cell) set({ position: Number(cell.dataset.t) + 2 });
      });
      return h("div", { class: `lens-model model-${explorer.KEYS[m]}` }, h("h2", {}, model.name, h("span", { class: "small" }, ` ${model.head}, cells by ${model.score}`)), strip, h("div", { class: "lens-scroll" }, table));
    });
    detail = h("aside", { class: "panel", "aria-label": "The same cell of both models" });
    root.append(h("div", { class: "lens-main" }, h("div", { class: "row" }, h("p", { class: "small lens-note" }, "A cell shows what the head reads from the state of that layer: its likeliest next token. ✓ marks the true one. The strip above each table is the whole text."),
      h("p", { class: "legend", title: "Sum over tokens of the smaller of the two probabilities" }, "agreement with the output, the probability in common", ...[0, 25, 50, 75, 100].map((share) => h("i", { class: "shade", style: { "--share": `${0.72 * share}%` } }, `${share} %`)))), ...parts), detail);
    new ResizeObserver(() => { if (data && !root.hidden) update(new Set()); }).observe(root);
  }

  function jump(event, strip) {
    const t = Math.floor((event.offsetX / strip.clientWidth) * data.ids.length);
    set({ position: Math.min(data.ids.length, Math.max(0, t)) + 2 });
  }

  const walkOf = (m) => data.models[m].walk;

  function hover(cell) {
    hovered = cell ? { layer: Number(cell.dataset.layer), t: Number(cell.dataset.t), m: Number(cell.dataset.m) } : null;
    for (const table of tables) {
      for (const td of table.querySelectorAll(".linked")) td.classList.remove("linked");
      if (hovered) table.querySelector(`td[data-t="${hovered.t}"][data-row="${rowOf(Number(table.dataset.m))}"]`)?.classList.add("linked");
    }
    renderDetail();
  }

  // The row of a model's table that shows the hovered layer, or the nearest share of the depth where depths differ
  function rowOf(m) {
    const [from, to] = [explorer.manifest.models[hovered.m].layers, explorer.manifest.models[m].layers];
    if (!from || !to) return null;
    const depth = from[hovered.layer] / Math.max(1, from.at(-1));
    let best = 0;
    to.forEach((layer, k) => { if (Math.abs(layer / Math.max(1, to.at(-1)) - depth) < Math.abs(to[best] / Math.max(1, to.at(-1)) - depth)) best = k; });
    return best;
  }

  function renderTable(m) {
    const [model, walk] = [explorer.manifest.models[m], walkOf(m)];
    tables[m].dataset.m = m;
    if (!walk) {
      tables[m].replaceChildren(h("tbody", {}, h("tr", {}, h("td", {}, explorer.manifest.left_out.find((line) => line.includes(model.name)) ?? "not known"))));
      return;
    }
    const [layers, width, k] = walk.top.shape;
    const shown = Array.from({ length: Math.min(columns, width - start) }, (_, c) => start + c);
    const current = explorer.position(data) - 1;
    const color = explorer.modelColor(m);
    const truth = (t) => (t + 1 < data.ids.length ? data.ids[t + 1] : null);
    const rows = [];
    for (let row = layers - 1; row >= 0; row--) {
      rows.push(h("tr", {}, h("th", { scope: "row" }, row === layers - 1 ? "output" : row === 0 ? "embedding" : `layer ${model.layers[row]}`), ...shown.map((t) => {
        const at = row * width + t;
        const token = walk.top[at * k];
        const agreement = walk.agreement[at];
        return h("td", { "data-t": t, "data-layer": row, "data-row": row, "data-m": m, tabindex: "0", class: t === current ? "current" : null, style: { background: rgba(color, 0.72 * agreement) } },
          label(explorer.tokenText(m, token)), token === truth(t) ? h("span", { class: "tick" }, "✓") : null);
      })));
    }
    tables[m].replaceChildren(
      h("tbody", {}, ...rows),
      h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "read"), ...shown.map((t) => h("td", { class: t === current ? "current" : null }, label(explorer.tokenText(m, data.ids[t])))))));
  }

  function drawStrip(m) {
    const [strip, walk] = [strips[m], walkOf(m)];
    strip.hidden = !walk;
    if (!walk) return;
    const [layers, width] = walk.top.shape;
    const [w, t] = [strip.clientWidth, strip.clientHeight];
    if (!w) return;
    const ratio = explorer.fit(strip, w, t);
    const context = strip.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, w, t);
    const [step, line] = [w / width, (t - 4) / layers];
    const color = explorer.modelColor(m);
    for (let row = 0; row < layers; row++) {
      for (let i = 0; i < width; i++) {
        context.fillStyle = rgba(color, walk.agreement[row * width + i] ** 2);
        context.fillRect(i * step, 2 + (layers - 1 - row) * line, step + 0.3, line + 0.3);
      }
    }
    context.strokeStyle = rgba(explorer.color("ink"));
    context.lineWidth = 1.5;
    context.strokeRect(start * step + 0.75, 0.75, Math.min(columns, width - start) * step - 1.5, t - 1.5);
  }

  function renderDetail() {
    const current = Math.max(0, explorer.position(data) - 1);
    const t = hovered ? hovered.t : Math.min(current, data.ids.length - 1);
    const cards = explorer.manifest.models.map((model, m) => {
      const walk = walkOf(m);
      if (!walk) return h("div", { class: `card model-${explorer.KEYS[m]}` }, h("h4", {}, model.name), h("p", {}, "left out"));
      const row = hovered ? rowOf(m) ?? walk.top.shape[0] - 1 : walk.top.shape[0] - 1;
      const [, width, k] = walk.top.shape;
      const at = row * width + t;
      const truth = t + 1 < data.ids.length ? data.ids[t + 1] : null;
      const lines = Array.from({ length: k }, (_, j) => {
        const token = walk.top[at * k + j];
        return h("tr", { class: token === truth ? "truth" : null }, h("td", {}, h("code", {}, label(explorer.tokenText(m, token))), token === truth ? h("span", { class: "tick" }, " ✓") : null), h("td", { class: "score" }, number(walk.top_score[at * k + j])));
      });
      const of = row * (width - 1) + t;
      return h("div", { class: `card model-${explorer.KEYS[m]}` }, h("h4", {}, model.name),
        h("p", { class: "small" }, `${row === walk.top.shape[0] - 1 ? "output" : row === 0 ? "embeddings" : `after layer ${model.layers[row]}`}: agreement ${percent(walk.agreement[at])}`),
        h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "likeliest"), h("th", {}, model.score))), h("tbody", {}, ...lines)),
        truth === null ? null : h("p", { class: "small" }, "true token ", h("code", {}, label(explorer.tokenText(m, truth))), `: ${model.score} ${number(walk.label_score[of])}, probability ${percent(walk.label_p[of])}, rank ${walk.label_rank[of]}`));
    });
    detail.replaceChildren(h("h3", {}, "State at ", h("code", {}, label(explorer.tokenText(0, data.ids[t]))), ` (position ${t + 1})`), h("p", { class: "small" }, hovered ? "The same cell of both models." : "Hover over a cell, or choose one, to compare."), h("div", { class: "pair" }, ...cards));
  }

  function update(changed) {
    if (!explorer.texts.length) {
      root.replaceChildren(h("p", { class: "missing" }, `There is no text to look into: ${explorer.manifest.texts_missing}.`));
      return;
    }
    const next = explorer.textData();
    if (!next) return;
    if (next !== data) { data = next; hovered = null; }
    const room = (tables[0].parentElement.clientWidth || 700) - 70;
    columns = Math.max(3, Math.min(data.ids.length, Math.floor(room / (room < 400 ? 62 : 84))));
    const current = Math.min(data.ids.length - 1, Math.max(0, explorer.position(data) - 1));
    if (current < start || current >= start + columns || changed?.has("text")) start = Math.max(0, Math.min(data.ids.length - columns, current - Math.floor(columns / 2)));
    start = Math.max(0, Math.min(start, data.ids.length - columns));
    [0, 1].forEach((m) => { renderTable(m); drawStrip(m); });
    renderDetail();
  }

  return { title: "Lens", needsText: true, build, update };
})();
