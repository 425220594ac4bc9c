// The page as a whole: loads the data, shows one view, and listens to keys.
"use strict";
(() => {
  const { h, state, set, label, number } = explorer;
  const built = new Set();
  const $ = (id) => document.getElementById(id);

  // Position of the chosen token, from 0; its default is where the models differ most. data.ids.length: after the text
  explorer.position = (data) => {
    if (!data) return 0;
    if (state.position !== null) return Math.min(data.ids.length, state.position - 1);
    const [a, b] = data.models.map((model) => model.nats);
    let best = 0;
    for (let i = 1; i < a.length; i++) if (Math.abs(a[i] - b[i]) > Math.abs(a[best] - b[best])) best = i;
    return best + 1;
  };

  function theme(next) {
    if (next) {
      document.documentElement.dataset.theme = next;
      try { localStorage.setItem("theme", next); } catch { /* a page from the file system may have no storage */ }
    }
    paintModels();
    for (const listener of explorer.listeners) listener(new Set(["theme"]));
  }

  // The color of a model is its head's: harmonic blue, standard orange; others, and a second one of a head, have their own
  function paintModels() {
    const taken = new Set();
    explorer.manifest.models.forEach((model, m) => {
      const own = { harmonic: "harmonic", standard: "standard" }[model.head];
      const name = own && !taken.has(own) ? own : taken.has("other-1") ? "other-2" : "other-1";
      taken.add(name);
      const style = getComputedStyle(document.documentElement);
      document.documentElement.style.setProperty(`--${explorer.KEYS[m]}`, style.getPropertyValue(`--${name}`).trim());
      document.documentElement.style.setProperty(`--${explorer.KEYS[m]}-ink`, style.getPropertyValue(`--${name}-ink`).trim());
    });
  }

  function title() {
    const [a, b] = explorer.manifest.models;
    const chip = (model, m) => h("span", { class: `chip model-${explorer.KEYS[m]}`, title: model.described }, h("i", { class: "dot" }), h("span", { class: "wide" }, model.name.slice(0, model.name.length - explorer.shortName(m).length)), explorer.shortName(m));
    $("models").replaceChildren(chip(a, 0), h("span", { class: "vs" }, "and"), chip(b, 1));
    document.title = `${a.name} and ${b.name}`;
  }

  // The token that the views of a text share: stepped through here
  function cursor() {
    const bar = $("cursor");
    const data = explorer.textData();
    bar.hidden = !explorer.views[state.view].needsText || !data;
    if (bar.hidden) return;
    const at = explorer.position(data);
    const word = (i) => (i < data.ids.length ? label(explorer.tokenText(0, data.ids[i])) : "next?");
    const before = Array.from(data.ids.subarray(Math.max(0, at - 9), at), (id) => explorer.tokenText(0, id)).join("").replace(/\s+/g, " ");
    const after = Array.from(data.ids.subarray(at + 1, at + 6), (id) => explorer.tokenText(0, id)).join("").replace(/\s+/g, " ");
    const texts = h("select", { "aria-label": "Text", onchange: (event) => set({ text: Number(event.target.value), position: null }) },
      ...explorer.texts.map((text, k) => h("option", { value: k + 1, selected: k + 1 === state.text }, `${k + 1}: ${text.opening}`)));
    const difference = at > 0 && at < data.ids.length ? data.models.map((model) => number(model.nats[at - 1])) : null;
    bar.replaceChildren(texts,
      h("button", { "aria-label": "Previous token", title: "←", onclick: () => move(-1) }, "‹"),
      h("span", { class: "numbers at" }, `${at + 1} / ${data.ids.length}`),
      h("button", { "aria-label": "Next token", title: "→", onclick: () => move(1) }, "›"),
      h("span", { class: "context" }, h("bdi", { class: "before" }, before), h("b", {}, word(at)), h("bdi", { class: "after" }, after)),
      difference ? h("span", { class: "numbers surprise" }, h("span", { class: "ink-a" }, difference[0]), " · ", h("span", { class: "ink-b" }, difference[1]), h("span", { class: "small" }, " nats")) : h("span", {}));
  }

  function move(by) {
    const data = explorer.textData();
    if (data) set({ position: Math.min(data.ids.length + 1, Math.max(1, explorer.position(data) + 1 + by)) });
  }

  async function show(changed) {
    if (!explorer.views[state.view]) { set({ view: "read" }); return; }
    const view = explorer.views[state.view];
    for (const button of document.querySelectorAll("#views button")) button.setAttribute("aria-current", button.dataset.view === state.view ? "page" : "false");
    for (const name of Object.keys(explorer.views)) $(name).hidden = name !== state.view;
    if (explorer.texts.length && state.text > explorer.texts.length) { set({ text: 1, position: null }); return; }
    try {
      if (state.view === "map" || state.view === "walk") explorer.maps ??= await Promise.all(["map-a", "map-b"].map(explorer.load));
      if (view.needsText && explorer.texts.length && !explorer.textData()) await explorer.load(explorer.texts[state.text - 1].key);
      if (state.view === "verdict") await explorer.load("verdict");
    } catch (error) {
      explorer.message(`This folder is not whole: ${error.message}`);
      return;
    }
    if (explorer.views[state.view] !== view) return; // another view was chosen meanwhile
    if (!built.has(state.view)) { view.build($(state.view)); built.add(state.view); }
    cursor();
    view.update(changed);
    document.documentElement.dataset.ready = state.view;
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=range]), select, textarea, dialog")) return;
    if (event.target.type === "range" && event.key.startsWith("Arrow")) return; // the slider's own
    const names = Object.keys(explorer.views);
    const act = {
      ArrowLeft: () => move(-1), ArrowRight: () => move(1), "/": () => { set({ view: "map" }); setTimeout(() => explorer.views.map.focusSearch(), 50); },
      p: () => explorer.png.copy(), t: () => theme(explorer.dark() ? "light" : "dark"), "?": about,
      " ": () => state.view === "walk" && explorer.views.walk.toggle(),
    }[event.key] ?? (names[Number(event.key) - 1] ? () => set({ view: names[Number(event.key) - 1] }) : null);
    if (!act || (event.key === " " && (state.view !== "walk" || event.target.closest("button")))) return;
    if (event.key.startsWith("Arrow") && !explorer.views[state.view].needsText) return;
    event.preventDefault();
    act();
  }

  function about() {
    const { manifest } = explorer;
    const rows = [["1 – 5", "views"], ["← →", "token before, token after"], ["/", "search a token on the map"], ["arrows, + −, 0", "move, zoom and reset a map that has the focus"], ["space", "start and stop the walk"], ["P", "copy the view as PNG"], ["T", "light or dark"]];
    $("about").replaceChildren(
      h("h2", {}, "Keys"), h("table", {}, h("tbody", {}, ...rows.map(([key, what]) => h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, what))))),
      h("h2", {}, "What is shown, and what is left out"),
      h("ul", {}, ...manifest.models.map((model) => h("li", {}, model.described)), manifest.selection ? h("li", {}, manifest.selection) : null,
        h("li", {}, "Of a prediction, the ten likeliest tokens; of a cell of the lens, one, and five on hover; of a center, the ten nearest."), ...manifest.left_out.map((line) => h("li", {}, line)), manifest.texts_missing ? h("li", {}, manifest.texts_missing) : null),
      h("p", { class: "small" }, `harmonic-gpt ${manifest.versions["harmonic-gpt"]}${manifest.git_commit ? `, commit ${manifest.git_commit.slice(0, 12)}` : ""}. This page loads nothing from the network.`),
      h("form", { method: "dialog" }, h("button", { class: "primary" }, "Close")));
    $("about").showModal();
  }

  async function start() {
    try {
      const saved = localStorage.getItem("theme");
      if (saved) document.documentElement.dataset.theme = saved;
    } catch { /* no storage: the system's choice */ }
    try {
      explorer.manifest = await explorer.load("manifest");
      if (explorer.manifest.schema_version !== explorer.SCHEMA_VERSION) throw new Error(`its data are of schema ${explorer.manifest.schema_version}, the page of ${explorer.SCHEMA_VERSION}`);
      await explorer.load("serve");
      const names = explorer.manifest.vocabularies;
      const held = await Promise.all([...new Set(names)].map(explorer.load));
      for (const vocabulary of held) {
        vocabulary.byText = new Map();
        vocabulary.tokens.forEach((text, i) => { if (!vocabulary.byText.has(text)) vocabulary.byText.set(text, i); });
      }
      explorer.vocabularies = names.map((name) => explorer.values.get(name));
      explorer.texts = [...explorer.manifest.texts];
    } catch (error) {
      $("models").textContent = "This explorer cannot be shown";
      explorer.message(error.message);
      return;
    }
    paintModels();
    title();
    Object.assign(state, explorer.fromAddress());
    state.view ??= state.token !== null && !location.hash.includes("position") ? "map" : "read";
    explorer.listeners.push((changed) => show(changed));
    for (const button of document.querySelectorAll("#views button")) button.addEventListener("click", () => set({ view: button.dataset.view }));
    $("copy").addEventListener("click", () => explorer.png.copy());
    $("theme").addEventListener("click", () => theme(explorer.dark() ? "light" : "dark"));
    $("help").addEventListener("click", about);
    addEventListener("keydown", keys);
    addEventListener("hashchange", () => {
      const next = explorer.fromAddress();
      next.view ??= state.view;
      set(next);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
    show(new Set(["view"]));
  }

  start();
})();
