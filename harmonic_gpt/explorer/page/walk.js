// Walk: the chosen position's state after each layer, on the map of the centers, on its way to its label's center.
"use strict";
explorer.views.walk = (() => {
  const { h, svg, state, set, label, number, percent, rgba, choice } = explorer;
  const { write, ring, names, colors } = explorer.mapKit;
  let root, panels = [], plots = [], trails = [], slider, play, controls, data = null, shown = {}, step = null, timer = null;

  const walkOf = (m) => data?.models[m].walk;
  const projection = () => (explorer.maps.every((map) => map.coordinates[state.map]) ? state.map : "pca");
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
    const taken = [];
    const points = Array.from({ length: layers }, (_, layer) => panel.project(...place(m, layer)));
    const head = panel.project(...between(m, at));
    points.forEach(([x, y]) => taken.push([x - 9, y - 9, 18, 18]));
    const target = truth();
    const nearest = walk.top[(Math.round(at) * walk.top.shape[1] + current()) * k];
    for (const token of [target, nearest]) if (token !== null) { const [x, y] = panel.at(token); taken.push([x - 12, y - 12, 30 + 8 * explorer.tokenText(m, token).length, 24]); }
    names(context, panel, m, taken, { most: Math.round(panel.size().width / 16), alpha: 0.5 });
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
      const box = panel.box(points);
      const core = panel.core();
      const least = 0.3 * Math.max(core[2] - core[0], core[3] - core[1]); // not so near that the map is gone
      for (const k of [0, 1]) {
        const lack = least - (box[k + 2] - box[k]);
        if (lack > 0) { box[k] -= lack / 2; box[k + 2] += lack / 2; }
      }
      panel.frame(core);
      panel.frame(box, 0.14);
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
    const first = lines(m, `${model.score}, by layer`, [...(score ? [[score, "var(--accent)", "label", ""]] : []), [nearest, explorer.rgba(explorer.color("soft")), "likeliest token", "3 3"]], null);
    const second = labelled ? lines(m, "probability of the label, by layer", [[of(walk.label_p), "var(--accent)", "", ""]], [0, Math.max(0.05, ...of(walk.label_p))]) : null;
    plots[m].replaceChildren(first, ...(second ? [second] : []));
  }

  function lines(m, title, series, range) {
    const { layers } = explorer.manifest.models[m];
    const [w, t, left, bottom, top] = [300, 132, 46, 22, 24];
    const all = series.flatMap(([values]) => values);
    let [low, high] = range ?? [Math.min(...all), Math.max(...all)];
    if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
    const x = (i) => left + ((w - left - 12) * i) / Math.max(1, layers.length - 1);
    const y = (v) => top + (t - top - bottom) * (1 - (v - low) / (high - low));
    const ink = rgba(explorer.color("ink"));
    const soft = rgba(explorer.color("soft"));
    const text = (content, attributes) => svg("text", { "font-size": 11, fill: soft, "font-family": "system-ui, sans-serif", ...attributes }, content);
    const image = svg("svg", { viewBox: `0 0 ${w} ${t}`, role: "img", "aria-label": title });
    image.append(text(title, { x: 4, y: 12, fill: ink, "font-weight": 600 }));
    for (const value of [low, high]) image.append(text(number(value), { x: left - 6, y: y(value) + 4, "text-anchor": "end" }), svg("line", { x1: left, x2: w - 12, y1: y(value), y2: y(value), stroke: rgba(explorer.color("line")) }));
    layers.forEach((layer, i) => image.append(text(String(layer), { x: x(i), y: t - 6, "text-anchor": "middle" })));
    const accent = rgba(explorer.color("accent"));
    for (const [values, color, name, dash] of series) {
      const stroke = color.startsWith("var") ? accent : color;
      image.append(svg("polyline", { points: values.map((v, i) => `${x(i)},${y(v)}`).join(" "), fill: "none", stroke, "stroke-width": 2.2, "stroke-dasharray": dash }));
      values.forEach((v, i) => image.append(svg("circle", { cx: x(i), cy: y(v), r: 2.8, fill: stroke }, svg("title", {}, `layer ${layers[i]}: ${number(v)}`))));
      if (name) image.append(text(name, { x: w - 14, y: 12 + (dash ? 12 : 0), "text-anchor": "end", fill: stroke, "font-weight": 600 }));
    }
    const now = svg("line", { class: "now", y1: top - 4, y2: t - bottom + 4, stroke: ink, "stroke-width": 1, opacity: 0.5 });
    const move = () => { const at = x(stepOf(m)); now.setAttribute("x1", at); now.setAttribute("x2", at); };
    move();
    image.move = move;
    image.append(now);
    return image;
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
    [0, 1].forEach((m) => { renderTrail(m); plots[m].querySelectorAll("svg").forEach((image) => image.move()); });
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
