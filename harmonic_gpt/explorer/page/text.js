// Read: a text with both models. Token i (from 0) was predicted by state i - 1; the address counts tokens from 1.
"use strict";
explorer.views.read = (() => {
  const { h, state, set, label, number, percent, rgba, choice } = explorer;
  const MOST_NATS = 12;
  const MOST_GAP = 4;
  let root, list, head, skyline, legend, passage, panel, modes, shownText = null, shownAt = null, data = null, hovered = null;

  const nats = (m, i) => (i > 0 ? data.models[m].nats[i - 1] : NaN);
  const gap = (i) => nats(0, i) - nats(1, i);
  const chosen = () => explorer.position(data);

  function build(element) {
    root = element;
    list = h("div", { class: "texts", role: "list", "aria-label": "Texts" });
    head = h("div", { class: "text-head" });
    const names = explorer.manifest.models.map((model) => model.name);
    modes = choice("Color of tokens", [["gap", "Difference"], ["a", explorer.shortName(0), `Surprise of ${names[0]}`], ["b", explorer.shortName(1), `Surprise of ${names[1]}`]],
      state.by, (by) => set({ by }));
    modes.children[1].classList.add("model-a");
    modes.children[2].classList.add("model-b");
    legend = h("div", { class: "legend" });
    skyline = h("canvas", { class: "skyline", role: "img", "aria-label": "Surprise of each token: up the first model's, down the second's" });
    passage = h("p", { class: "passage", tabindex: "0", "aria-label": "The text; arrow keys choose a token" });
    panel = h("aside", { class: "panel", "aria-label": "Likeliest tokens" });
    const center = h("div", { class: "center" }, head, h("div", { class: "row" }, modes, legend), skyline, passage);
    root.append(h("div", { class: "texts-box" }, prompt(), list, h("p", { class: "small" }, explorer.manifest.selection)), center, panel);
    passage.addEventListener("click", (event) => {
      const token = event.target.closest("[data-i]");
      if (token) set({ position: Number(token.dataset.i) + 1 });
    });
    passage.addEventListener("pointerover", (event) => hover(event.target.closest("[data-i]")));
    passage.addEventListener("pointerleave", () => hover(null));
    skyline.addEventListener("pointermove", (event) => hover(passage.querySelector(`[data-i="${under(event)}"]`)));
    skyline.addEventListener("pointerleave", () => hover(null));
    skyline.addEventListener("click", (event) => set({ position: under(event) + 1 }));
    new ResizeObserver(() => data && drawSkyline()).observe(skyline);
  }

  const under = (event) => Math.min(data.ids.length - 1, Math.max(0, Math.floor((event.offsetX / skyline.clientWidth) * data.ids.length)));

  function hover(token) {
    const next = token ? Number(token.dataset.i) : null;
    if (next === hovered) return;
    passage.querySelector(".hovered")?.classList.remove("hovered");
    token?.classList.add("hovered");
    hovered = next;
    drawSkyline();
    renderPanel();
  }

  // Where the page is served by `--serve`, a typed text is sent there
  function prompt() {
    const served = explorer.values.get("serve");
    if (!served) return null;
    const input = h("textarea", { rows: "3", maxlength: served.characters, placeholder: "Type a text for both models", "aria-label": "A text for both models" });
    const button = h("button", { class: "primary" }, "Read it");
    const form = h("form", { class: "prompt" }, input, button, h("p", { class: "small" }, `At most ${served.tokens} tokens; read on this computer.`));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      button.disabled = true;
      try {
        const answer = await fetch("read", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text: input.value }) });
        const value = await answer.json();
        if (!answer.ok) { explorer.message(value.error); return; }
        value.summary.key = `typed-${explorer.texts.length + 1}`;
        explorer.receive(value.summary.key, value.text);
        explorer.texts.push(value.summary);
        shownText = null;
        set({ text: explorer.texts.length, position: explorer.values.get(value.summary.key).ids.length + 1 });
      } catch (error) {
        explorer.message(`No answer from the server: ${error.message}`);
      } finally {
        button.disabled = false;
      }
    });
    return form;
  }

  function renderList() {
    list.replaceChildren(...explorer.texts.map((text, k) => {
      const strip = h("canvas", { class: "strip", "aria-hidden": "true" });
      const button = h("button", { class: "text-card", role: "listitem", "aria-current": String(k + 1 === state.text), onclick: () => set({ text: k + 1, position: null }) },
        h("span", { class: "text-name" }, h("b", {}, String(k + 1)), ` ${text.opening}`), strip,
        h("span", { class: "small numbers" }, h("span", { class: "ink-a" }, number(text.nats[0])), " · ", h("span", { class: "ink-b" }, number(text.nats[1])), " nats per token"));
      requestAnimationFrame(() => drawStrip(strip, text.gaps));
      return button;
    }));
  }

  function drawStrip(canvas, gaps) {
    const [width, height] = [canvas.clientWidth || 200, 14];
    const ratio = explorer.fit(canvas, width, height);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const step = width / gaps.length;
    gaps.forEach((value, i) => {
      context.fillStyle = rgba(explorer.modelColor(value < 0 ? 0 : 1), Math.min(1, Math.abs(value) / MOST_GAP));
      context.fillRect(i * step, 0, Math.max(step, 0.75), height);
    });
  }

  // Background of a token: the color of the model that it speaks for
  function tint(i) {
    if (i === 0) return "transparent";
    if (state.by === "gap") {
      const value = gap(i);
      return rgba(explorer.modelColor(value < 0 ? 0 : 1), 0.75 * Math.min(1, Math.abs(value) / MOST_GAP));
    }
    const m = explorer.KEYS.indexOf(state.by);
    return rgba(explorer.modelColor(m), 0.75 * Math.min(1, nats(m, i) / MOST_NATS));
  }

  function renderLegend() {
    const names = explorer.manifest.models.map((model) => model.name);
    const steps = [-4, -2, -1, 0, 1, 2, 4];
    const cell = (text, background) => h("i", { style: { background } }, text);
    legend.replaceChildren();
    if (state.by === "gap") {
      legend.append(h("span", { class: "ink-a" }, `${explorer.shortName(0)} is less surprised`),
        ...steps.map((v) => cell(v ? Math.abs(v) : "0", rgba(explorer.modelColor(v < 0 ? 0 : 1), (0.75 * Math.abs(v)) / MOST_GAP))),
        h("span", { class: "ink-b" }, `${explorer.shortName(1)} is`), h("span", {}, "(nats)"));
    } else {
      const m = explorer.KEYS.indexOf(state.by);
      legend.append(h("span", {}, `surprise of ${names[m]}`), ...[0, 2, 4, 6, 8, 10, 12].map((v) => cell(v, rgba(explorer.modelColor(m), (0.75 * v) / MOST_NATS))), h("span", { class: "small" }, "nats"));
    }
  }

  function renderPassage() {
    const parts = [];
    data.ids.forEach((id, i) => {
      const text = explorer.tokenText(0, id);
      const shown = text.replace(/\n/g, "↵\n");
      parts.push(h("span", { "data-i": i, class: "token" }, shown));
    });
    // What comes after the text: a prediction without a label
    parts.push(h("span", { "data-i": data.ids.length, class: "token next" }, " next?"));
    passage.replaceChildren(...parts);
  }

  function paintPassage() {
    const at = chosen();
    for (const token of passage.children) {
      const i = Number(token.dataset.i);
      token.style.background = i < data.ids.length ? tint(i) : "transparent";
      token.classList.toggle("chosen", i === at);
    }
  }

  // Bring the chosen token into view, once for each choice
  function reveal() {
    const at = chosen();
    const current = passage.querySelector(".chosen");
    if (current && !root.hidden) {
      const [box, view] = [current.getBoundingClientRect(), passage.getBoundingClientRect()];
      if (passage.scrollHeight > passage.clientHeight + 2) {
        if (box.top < view.top || box.bottom > view.bottom) passage.scrollTop += box.top - view.top - view.height / 3;
      } else if (at !== shownAt && (box.top < 120 || box.bottom > 0.6 * innerHeight)) { // on a phone the page scrolls
        scrollBy(0, box.top - 0.4 * innerHeight);
      }
      shownAt = at;
    }
  }

  function drawSkyline() {
    const [width, height] = [skyline.clientWidth, skyline.clientHeight];
    if (!width) return;
    const ratio = explorer.fit(skyline, width, height);
    const context = skyline.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const [step, middle] = [width / data.ids.length, height / 2];
    const scale = (middle - 3) / MOST_NATS;
    for (const [i, alpha] of [[hovered, 0.12], [chosen(), 0.2]]) {
      if (i === null) continue;
      context.fillStyle = rgba(explorer.color("ink"), alpha);
      context.fillRect(i * step - 1, 0, Math.max(step, 2) + 2, height);
    }
    for (let m = 0; m < 2; m++) {
      for (let i = 1; i < data.ids.length; i++) {
        const strong = i === chosen() || i === hovered;
        context.fillStyle = rgba(explorer.modelColor(m), strong ? 1 : 0.75);
        const size = Math.min(MOST_NATS, nats(m, i)) * scale;
        context.fillRect(i * step, m === 0 ? middle - size : middle + 1, Math.max(step - (step > 3 ? 1 : 0.25), 0.75), size);
      }
    }
  }

  function renderHead() {
    const text = explorer.texts[state.text - 1];
    const [a, b] = text.nats;
    head.replaceChildren(
      h("p", { class: "small" }, `Text ${state.text}, ${text.source}: ${text.tokens} tokens. Mean surprise `, h("b", { class: "ink-a" }, `${number(a)}`), " and ", h("b", { class: "ink-b" }, `${number(b)}`),
        ` nats per token, ${explorer.manifest.models[a < b ? 0 : 1].name} lower by ${number(Math.abs(a - b))}. `, text.note ? h("mark", {}, text.note) : null));
  }

  // The ten likeliest tokens of each model at a token of the text, the true one marked
  function renderPanel() {
    if (!data) return;
    const i = hovered ?? chosen();
    if (i === 0) {
      panel.replaceChildren(h("p", {}, "Nothing precedes the first token, so nothing predicts it."));
      return;
    }
    const truth = i < data.ids.length ? data.ids[i] : null;
    const title = truth === null ? h("h3", {}, "After the text") : h("h3", {}, "Token ", h("code", {}, label(explorer.tokenText(0, truth))), ` at position ${i + 1}`);
    panel.replaceChildren(title, h("div", { class: "pair" }, ...[0, 1].map((m) => predictions(m, i, truth))), ...through(i, truth));
  }

  // How the true token's probability comes about, layer by layer, and the ways to look closer
  function through(i, truth) {
    const known = [0, 1].filter((m) => data.models[m].walk);
    if (!known.length) return [];
    const links = h("div", { class: "row" }, h("button", { onclick: () => set({ view: "lens", position: i + 1 }) }, "Lens here"), h("button", { onclick: () => set({ view: "walk", position: i + 1 }) }, "Walk to this token"),
      truth === null ? null : h("button", { onclick: () => set({ view: "map", token: explorer.tokenText(0, truth).replace(/^ (?=.)/, "") }) }, "On the map"));
    if (truth === null) return [links];
    const series = known.map((m) => {
      const { label_p: p } = data.models[m].walk;
      const [layers, width] = p.shape;
      return { values: Array.from({ length: layers }, (_, l) => p[l * width + i - 1]), color: rgba(explorer.modelColor(m)), name: explorer.shortName(m) };
    });
    const longest = known.map((m) => explorer.manifest.models[m].layers).sort((x, y) => y.length - x.length)[0];
    return [h("div", { class: "plot one" }, explorer.plot("probability of the true token, by layer", longest, series, [0, Math.max(0.02, ...series.flatMap((one) => one.values))])), links];
  }

  function predictions(m, i, truth) {
    const [model, held] = [explorer.manifest.models[m], data.models[m]];
    const k = held.top.shape[1];
    const row = (token, p, score, rank) => h("tr", { class: token === truth ? "truth" : null },
      h("td", { class: "rank" }, rank), h("td", { title: label(explorer.tokenText(m, token)) }, h("code", {}, label(explorer.tokenText(m, token))), token === truth ? h("span", { class: "tick", title: "the true token" }, " ✓") : null),
      h("td", { class: "bar" }, h("i", { style: { width: `${100 * p}%` } }), h("span", {}, percent(p))), h("td", { class: "score" }, number(score)));
    const rows = [];
    for (let j = 0; j < k; j++) {
      const at = (i - 1) * k + j;
      rows.push(row(held.top[at], held.top_p[at], held.top_score[at], j + 1));
    }
    let surprise = "";
    if (truth !== null) {
      const rank = held.label_rank[i - 1];
      surprise = `surprise ${number(held.nats[i - 1])} nats, rank ${rank}`;
      if (!rows.some((r) => r.className === "truth")) rows.push(h("tr", { class: "gap" }, h("td", { colspan: "4" }, "⋯")), row(truth, Math.exp(-held.nats[i - 1]), held.label_score[i - 1], rank));
    }
    return h("div", { class: `card model-${explorer.KEYS[m]}` }, h("h4", {}, model.name), h("p", { class: "small" }, surprise),
      h("table", { class: "ten" }, h("thead", {}, h("tr", {}, h("th", { class: "rank" }, ""), h("th", {}, "token"), h("th", { class: "bar" }, "probability"), h("th", { class: "score" }, model.score))), h("tbody", {}, ...rows)));
  }

  function update(changed) {
    if (!explorer.texts.length) {
      root.replaceChildren(h("p", { class: "missing" }, `There is no text that both models read: ${explorer.manifest.texts_missing}.`));
      return;
    }
    const next = explorer.textData();
    if (!next) return;
    if (next !== data || shownText !== state.text) {
      data = next;
      shownText = state.text;
      hovered = null;
      renderList();
      renderHead();
      renderPassage();
    }
    modes.select(state.by);
    renderLegend();
    paintPassage();
    drawSkyline();
    renderPanel();
    reveal();
    if (changed?.has("theme")) renderList();
  }

  return { title: "Read", needsText: true, build, update };
})();
