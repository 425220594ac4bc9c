// Walk: the chosen position's state after each layer, on the map of the centers, on its way to its label's center.
"use strict";
explorer.views.walk = (() => {
  const { h, state, set, label, number, percent, rgba, choice } = explorer;
  const { write, ring, room, names, colors } = explorer.mapKit;
  let root, panels = [], plots = [], trails = [], slider, play, controls, data = null, shown = {}, step = null, timer = null;

  const walkOf = (m) => data?.models[m].walk;
  const projection = () => (state.map && explorer.maps.every((map) => map.coordinates[state.map]) ? state.map : "pca");
  const last = () => Math.max(...[0, 1].map((m) => (walkOf(m) ? walkOf(m).top.shape[0] - 1 : 0)));
  const current = () => Math.min(data.ids.length - 1, Math.max(0, explorer.position(data) - 1)); // the state
  const truth = () => (current() + 1 < data.ids.length ? data.ids[current() + 1] : null);
  const stepOf = (m) => Math.min(step ?? last(), walkOf(m).top.shape[0] - 1);

  function build(element) {
    root = element;
    slider = h("input", { type: "range", min: "0", step: "0.02", "aria-label": "Layer" });
    slider.addEventListener("input", () => { stop(); step = Number(slider.value); render(); });
    play = h("button", { class: "primary", onclick: toggle }, "▶ Walk");
    const available = ["pca", "umap"].filter((name) => explorer.maps.every((map) => map.coordinates[name]));
    controls = choice("Map", available.map((name) => [name, name.toUpperCase()]), projection(), (map) => set({ map }));
    root.append(h("div", { class: "row controls" }, play, h("label", { class: "grow" }, h("span", { id: "layer-name" }), slider), controls));
    const boxes = explorer.manifest.models.map((model, m) => {
      const box = h("div", { class: "map-panel" });
      const plot = h("div", { class: "plot" });
      const trail = h("ol", { class: "trail", "aria-label": `Likeliest token after each layer, ${model.name}` });
      plots.push(plot);
      trails.push(trail);
      panels.push(null);
      return h("figure", { class: `map-model model-${explorer.KEYS[m]}` }, h("figcaption", {}, h("h2", {}, model.name, h("span", { class: "small" }, ` ${model.head}`)), h("p", { class: "small caption" })), box, trail, plot);
    });
    root.append(h("div", { class: "maps" }, ...boxes));
    boxes.forEach((figure, m) => {
      panels[m] = new explorer.Points(figure.querySelector(".map-panel"), { label: `The walk of ${explorer.manifest.models[m].name} on its map`, draw: (context, panel) => draw(context, panel, m), onpick: () => {}, onhover: () => {} });
    });
  }

  function place(m, layer) {
    const array = walkOf(m).coordinates[projection()];
    const at = 2 * (layer * array.shape[1] + current());
    return [array[at], array[at + 1]];
  }

  function between(m, at) {
    const low = Math.floor(at);
    const [a, b] = [place(m, low), place(m, Math.min(Math.ceil(at), walkOf(m).top.shape[0] - 1))];
    return [a[0] + (b[0] - a[0]) * (at - low), a[1] + (b[1] - a[1]) * (at - low)];
  }

  function draw(context, panel, m) {
    const walk = walkOf(m);
    if (!walk) return;
    const [layers, , k] = walk.top.shape;
    const [color, ink, accent] = [explorer.modelColor(m), explorer.color("ink"), explorer.color("accent")];
    const at = stepOf(m);
    const claim = room(panel);
    const points = Array.from({ length: layers }, (_, layer) => panel.project(...place(m, layer)));
    const head = panel.project(...between(m, at));
    points.forEach(([x, y]) => claim(x - 9, y - 9, 18, 18, true));
    const target = truth();
    const nearest = walk.top[(Math.round(at) * walk.top.shape[1] + current()) * k];
    for (const token of [target, nearest]) if (token !== null) { const [x, y] = panel.at(token); claim(x - 12, y - 12, 30 + 8 * explorer.tokenText(m, token).length, 24, true); }
    names(context, panel, m, claim, { most: Math.round(panel.size().width / 16), alpha: 0.5 });
    // The way that is left, the way that is gone, and a line from the state to the label's center
    const path = (from, to) => {
      context.beginPath();
      context.moveTo(...panel.project(...between(m, from)));
      for (let layer = Math.floor(from) + 1; layer < to; layer++) context.lineTo(...points[layer]);
      context.lineTo(...panel.project(...between(m, to)));
      context.stroke();
    };
    context.lineJoin = context.lineCap = "round";
    context.setLineDash([2, 6]);
    context.lineWidth = 2;
    context.strokeStyle = rgba(color, 0.7);
    if (at < layers - 1) path(at, layers - 1);
    context.setLineDash([]);
    context.lineWidth = 8;
    context.strokeStyle = rgba(color, 0.22);
    if (at > 0) path(0, at);
    context.lineWidth = 3;
    context.strokeStyle = rgba(color);
    if (at > 0) path(0, at);
    if (target !== null) {
      context.setLineDash([5, 4]);
      context.lineWidth = 1.3;
      context.strokeStyle = rgba(accent, 0.9);
      context.beginPath();
      context.moveTo(...head);
      context.lineTo(...panel.at(target));
      context.stroke();
      context.setLineDash([]);
    }
    points.forEach(([x, y], layer) => {
      context.beginPath();
      context.arc(x, y, layer <= at ? 8 : 6, 0, 2 * Math.PI);
      context.fillStyle = rgba(layer <= at ? color : explorer.color("panel"));
      context.fill();
      context.lineWidth = 1.5;
      context.strokeStyle = rgba(color);
      context.stroke();
      context.font = "600 10px system-ui, sans-serif";
      context.textAlign = "center";
      context.fillStyle = rgba(layer <= at ? explorer.color("panel") : color);
      context.fillText(explorer.manifest.models[m].layers[layer], x, y + 3.5);
      context.textAlign = "left";
    });
    ring(context, head, 12, ink, 2);
    if (target !== null) {
      const [x, y] = panel.at(target);
      star(context, x, y, 9, accent);
      write(context, label(explorer.tokenText(m, target)), x + 12, y + 5, { size: 16, weight: 700, color: accent });
    }
    if (nearest !== target) {
      ring(context, panel.at(nearest), 6, ink, 2);
      const [x, y] = panel.at(nearest);
      write(context, label(explorer.tokenText(m, nearest)), x + 10, y - 6, { size: 14, weight: 650 });
    }
  }

  function star(context, x, y, radius, color) {
    context.beginPath();
    for (let i = 0; i < 10; i++) {
      const r = i % 2 ? radius * 0.45 : radius;
      const angle = -Math.PI / 2 + (i * Math.PI) / 5;
      context.lineTo(x + r * Math.cos(angle), y + r * Math.sin(angle));
    }
    context.closePath();
    context.fillStyle = rgba(color);
    context.fill();
    context.lineWidth = 1.5;
    context.strokeStyle = rgba(explorer.color("panel"));
    context.stroke();
  }

  function frame() {
    panels.forEach((panel, m) => {
      const walk = walkOf(m);
      if (!walk) return;
      const points = Array.from({ length: walk.top.shape[0] }, (_, layer) => place(m, layer));
      const target = truth();
      if (target !== null) points.push([panel.places[2 * target], panel.places[2 * target + 1]]);
      panel.frame(null);
      panel.frame(panel.atLeast(panel.box(points), 0.3), 0.14);
    });
  }

  // Two small plots of a model: score of the label (and of the likeliest token), and probability of the label, by layer
  function renderPlot(m) {
    const [walk, model] = [walkOf(m), explorer.manifest.models[m]];
    if (!walk) { plots[m].replaceChildren(h("p", { class: "missing" }, explorer.manifest.left_out.find((line) => line.includes(model.name)) ?? "left out")); return; }
    const [layers, width, k] = walk.top.shape;
    const t = current();
    const rows = Array.from({ length: layers }, (_, l) => l);
    const nearest = rows.map((l) => walk.top_score[(l * width + t) * k]);
    const labelled = truth() !== null;
    const of = (array) => rows.map((l) => array[l * (width - 1) + t]);
    const score = labelled ? of(walk.label_score) : null;
    const accent = rgba(explorer.color("accent"));
    const one = (values, color, name, dash) => ({ values, color, name, dash });
    const ticks = model.layers;
    const first = explorer.plot(`${model.score}, by layer`, ticks, [...(score ? [one(score, accent, "label")] : []), one(nearest, rgba(explorer.color("soft")), "likeliest token", "3 3")]);
    const second = labelled ? explorer.plot("probability of the label, by layer", ticks, [one(of(walk.label_p), accent)], [0, Math.max(0.05, ...of(walk.label_p))]) : null;
    plots[m].replaceChildren(first, ...(second ? [second] : []));
  }

  function renderTrail(m) {
    const walk = walkOf(m);
    if (!walk) { trails[m].replaceChildren(); return; }
    const [layers, width, k] = walk.top.shape;
    const at = Math.round(stepOf(m));
    trails[m].replaceChildren(...Array.from({ length: layers }, (_, l) => {
      const token = walk.top[(l * width + current()) * k];
      return h("li", { class: `${l === at ? "now" : ""} ${token === truth() ? "truth" : ""}` }, h("button", { title: `layer ${explorer.manifest.models[m].layers[l]}`, onclick: () => { stop(); step = l; render(); } },
        h("span", { class: "small" }, String(explorer.manifest.models[m].layers[l])), label(explorer.tokenText(m, token)), token === truth() ? "✓" : ""));
    }));
  }

  function render() {
    const at = step ?? last();
    slider.max = last();
    slider.value = at;
    const longest = explorer.manifest.models[0].layers ?? explorer.manifest.models[1].layers ?? [0];
    const layer = longest[Math.min(longest.length - 1, Math.round(at))];
    root.querySelector("#layer-name").textContent = layer === 0 ? "embeddings" : Math.round(at) >= last() ? "output" : `after layer ${layer}`;
    panels.forEach((panel) => panel.request());
    [0, 1].forEach((m) => { renderTrail(m); plots[m].querySelectorAll("svg").forEach((image) => image.mark(stepOf(m))); });
  }

  function stop() {
    cancelAnimationFrame(timer);
    timer = null;
    play.textContent = "▶ Walk";
  }

  function toggle() {
    if (timer !== null) { stop(); return; }
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) { step = (Math.floor(step ?? last()) + 1) % (last() + 1); render(); return; }
    if (step === null || step >= last()) step = 0;
    play.textContent = "❚❚ Stop";
    let before = performance.now();
    const tick = (now) => {
      step = Math.min(last(), step + ((now - before) / 1000) * 1.1);
      before = now;
      render();
      if (step >= last()) { stop(); return; }
      timer = requestAnimationFrame(tick);
    };
    timer = requestAnimationFrame(tick);
  }

  function update(changed) {
    if (!explorer.texts.length || explorer.manifest.models.every((model) => !model.layers)) {
      const reason = explorer.texts.length ? explorer.manifest.left_out.join(" ") : `There is no text whose states could walk: ${explorer.manifest.texts_missing}.`;
      root.replaceChildren(h("p", { class: "missing" }, reason));
      return;
    }
    const next = explorer.textData();
    if (!next) return;
    const moved = next !== data || shown.at !== explorer.position(next) || shown.name !== projection();
    data = next;
    const name = projection();
    controls.select(name);
    panels.forEach((panel, m) => {
      if (shown.name !== name) panel.setPoints(explorer.maps[m].coordinates[name]);
      if (shown.name !== name || changed?.has("theme")) panel.setColors(...colors(m, "plain", null));
      const { state_scale: factor, score } = explorer.manifest.models[m];
      const note = name === "umap" ? "UMAP has no formula for states: each lies at the mean place of its ten likeliest tokens, weighted by probability." : `States and centers by the same projection${factor === 1 ? "" : `; states x ${number(factor)} to fit, which changes no order of ${score}s`}.`;
      root.querySelectorAll(".caption")[m].textContent = note;
    });
    const before = shown;
    shown = { name, at: explorer.position(data) };
    if (moved && !(before.name === name && timer !== null)) frame();
    [0, 1].forEach(renderPlot);
    render();
  }

  return { title: "Walk", needsText: true, build, update, toggle, panels };
})();
