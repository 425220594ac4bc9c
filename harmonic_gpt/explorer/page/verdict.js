// Verdict: the headlines of `eval.py compare`, with their intervals.
"use strict";
explorer.views.verdict = (() => {
  const { h, svg, number, rgba } = explorer;
  let root;

  function build(element) {
    root = element;
  }

  const role = (head) => ({ harmonic: "harmonic", standard: "standard" })[head] ?? "other-1";

  function interval(value) {
    return value ? `[${value.map((v) => v.toFixed(3)).join(", ")}]` : "";
  }

  // The difference with its interval around zero; each row has its own scale
  function forest(row, higherIsBetter, colors) {
    const [w, t] = [260, 30];
    const reach = 1.15 * Math.max(Math.abs(row.difference), ...(row.interval ?? [0]).map(Math.abs), 1e-9);
    const x = (v) => w / 2 + ((w / 2 - 8) * v) / reach;
    const firstAhead = row.difference > 0 === higherIsBetter;
    const color = row.better === null ? rgba(explorer.color("soft")) : rgba(explorer.color(firstAhead ? colors[0] : colors[1]));
    const image = svg("svg", { viewBox: `0 0 ${w} ${t}`, role: "img", "aria-label": `difference ${number(row.difference)} ${interval(row.interval)}` });
    image.append(svg("line", { x1: w / 2, x2: w / 2, y1: 2, y2: t - 2, stroke: rgba(explorer.color("soft")), "stroke-dasharray": "2 3" }));
    if (row.interval) image.append(svg("line", { x1: x(row.interval[0]), x2: x(row.interval[1]), y1: t / 2, y2: t / 2, stroke: color, "stroke-width": 4, "stroke-linecap": "round", opacity: 0.55 }));
    image.append(svg("circle", { cx: x(row.difference), cy: t / 2, r: 6, fill: row.interval ? color : "none", stroke: color, "stroke-width": 2 }));
    return image;
  }

  function table(verdict, difference) {
    const arms = [difference.first, difference.second];
    const colors = arms.map((arm) => role(verdict.heads[arm]));
    const rows = Object.entries(verdict.headlines).map(([key, headline]) => {
      const row = difference.headlines[key];
      const digits = key === "nats" ? 4 : 3;
      const cells = arms.map((arm, k) => {
        const value = headline.arms[arm];
        if (!value) return h("td", {}, "not measured");
        return h("td", {}, h("b", { class: row.better === arm ? "ahead" : null, style: { color: row.better === arm ? `var(--${colors[k]}-ink)` : "inherit" } }, value.mean.toFixed(digits)),
          h("span", { class: "small" }, value.sd === null ? "" : ` ± ${value.sd.toFixed(digits)} (${value.runs} runs)`, " ", interval(value.interval)));
      });
      const known = row.difference !== null;
      return h("tr", {}, h("th", { scope: "row" }, `${headline.label} ${headline.higher_is_better ? "↑" : "↓"}`), ...cells,
        h("td", {}, known ? `${row.difference > 0 ? "+" : ""}${row.difference.toFixed(digits)}` : "–", h("span", { class: "small" }, ` ${interval(row.interval)}`)),
        h("td", { class: "forest" }, known ? forest(row, headline.higher_is_better, colors) : ""),
        h("td", {}, row.better ? h("b", { style: { color: `var(--${colors[arms.indexOf(row.better)]}-ink)` } }, row.better) : known && row.interval ? "no difference shown" : known ? "spread not known" : ""));
    });
    return h("table", { class: "verdict-table" }, h("thead", {}, h("tr", {}, h("th", {}, ""), ...arms.map((arm, k) => h("th", {}, h("span", { class: "dot", style: { background: `var(--${colors[k]})` } }), arm)), h("th", {}, "difference"), h("th", {}, "95 % interval around zero"), h("th", {}, "ahead"))), h("tbody", {}, ...rows));
  }

  function update() {
    const verdict = explorer.values.get("verdict");
    if (!verdict) {
      root.replaceChildren(h("p", { class: "missing" }, `No verdict: ${explorer.manifest.verdict_missing}. `), h("pre", {}, "python eval.py compare A B --out report/\npython eval.py explore A B --report report/ --out explorer/"));
      return;
    }
    root.replaceChildren(
      h("h2", {}, "What the comparison says"),
      ...(verdict.same_weights ? [] : [h("p", {}, h("mark", {}, "These results are of other weights than the models shown here."))]),
      ...verdict.lines.map((line) => {
        const at = line.indexOf(":");
        return at > 0 && at < 30 ? h("p", { class: "verdict-line" }, h("b", {}, line.slice(0, at + 1)), line.slice(at + 1)) : h("p", { class: "verdict-line" }, line);
      }),
      ...verdict.differences.map((difference) => h("div", { class: "verdict-scroll" }, table(verdict, difference))),
      h("p", { class: "small" }, `↓ lower is better, ↑ higher is better. Brackets: 95 % intervals. A color is only given to a difference whose interval leaves out zero; each row has its own scale. Validation text: ${verdict.validation_tokens.toLocaleString("en")} tokens; token frequencies alone cost ${verdict.unigram_nats_per_token.toFixed(4)} nats per token.`));
  }

  return { title: "Verdict", needsText: false, build, update };
})();
