// A view as PNG: backgrounds, borders, text, canvases and SVG of an element, painted at their places. Works offline and
// taints no canvas.
"use strict";
explorer.png = (() => {
  const visible = (style) => style.visibility !== "hidden" && style.display !== "none" && style.opacity !== "0";
  const opaque = (color) => color && color !== "transparent" && !/, 0\)$/.test(color);

  function paintText(context, node, style, origin) {
    const range = document.createRange();
    context.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
    context.fillStyle = style.color;
    context.textBaseline = "alphabetic";
    // A run of characters on one line at a time
    const text = node.data;
    let run = "";
    let box = null;
    const flush = () => {
      if (run.trim() && box) {
        const metrics = context.measureText(run);
        const rise = (metrics.fontBoundingBoxAscent - metrics.fontBoundingBoxDescent) / 2;
        context.fillText(run.replace(/[\n\t]/g, " "), box.left - origin.left, (box.top + box.bottom) / 2 - origin.top + rise);
      }
      run = "";
      box = null;
    };
    for (let i = 0; i < text.length; i++) {
      range.setStart(node, i);
      range.setEnd(node, i + 1);
      const rect = range.getClientRects()[0];
      if (!rect || !rect.width) continue;
      if (box && Math.abs(rect.top - box.top) > 2) flush();
      box = box ? { left: box.left, top: box.top, bottom: box.bottom } : rect;
      run += text[i];
    }
    flush();
  }

  async function paint(context, element, origin) {
    const style = getComputedStyle(element);
    if (!visible(style)) return;
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const [x, y] = [box.left - origin.left, box.top - origin.top];
    if (element instanceof SVGSVGElement) {
      const image = new Image();
      const copy = element.cloneNode(true);
      copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
      copy.setAttribute("width", box.width);
      copy.setAttribute("height", box.height);
      image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
      await image.decode();
      context.drawImage(image, x, y, box.width, box.height);
      return;
    }
    for (const part of element.getClientRects()) {
      if (!opaque(style.backgroundColor)) break;
      context.fillStyle = style.backgroundColor;
      context.beginPath();
      context.roundRect(part.left - origin.left, part.top - origin.top, part.width, part.height, parseFloat(style.borderTopLeftRadius) || 0);
      context.fill();
    }
    for (const [side, from, to] of [["Top", [0, 0], [1, 0]], ["Bottom", [0, 1], [1, 1]], ["Left", [0, 0], [0, 1]], ["Right", [1, 0], [1, 1]]]) {
      const width = parseFloat(style[`border${side}Width`]);
      if (!width || style[`border${side}Style`] === "none") continue;
      context.strokeStyle = style[`border${side}Color`];
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(x + from[0] * box.width, y + from[1] * box.height);
      context.lineTo(x + to[0] * box.width, y + to[1] * box.height);
      context.stroke();
    }
    if (element instanceof HTMLCanvasElement) {
      context.drawImage(element, x, y, box.width, box.height);
      return;
    }
    if (element instanceof HTMLSelectElement || element instanceof HTMLInputElement || element instanceof HTMLTextAreaElement) {
      context.font = `${style.fontSize} ${style.fontFamily}`;
      context.fillStyle = style.color;
      const text = element instanceof HTMLSelectElement ? element.selectedOptions[0]?.text ?? "" : element.type === "range" ? "" : element.value;
      context.save();
      context.beginPath();
      context.rect(x, y, box.width - 8, box.height);
      context.clip();
      context.fillText(text, x + 8, y + box.height / 2 + 4);
      context.restore();
      return;
    }
    const clips = ["auto", "scroll", "hidden"].includes(style.overflowY) || ["auto", "scroll", "hidden"].includes(style.overflowX);
    if (clips) {
      context.save();
      context.beginPath();
      context.rect(x, y, box.width, box.height);
      context.clip();
    }
    for (const child of element.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) paintText(context, child, style, origin);
      else if (child.nodeType === Node.ELEMENT_NODE) await paint(context, child, origin);
    }
    if (clips) context.restore();
  }

  // A canvas with the current view and what it shows, on the page's own background
  async function render() {
    const view = document.getElementById(explorer.state.view);
    const parts = [document.querySelector("header.top h1"), document.getElementById("cursor"), view].filter((part) => part && !part.hidden && part.getClientRects().length);
    const boxes = parts.map((part) => part.getBoundingClientRect());
    const margin = 16;
    const width = Math.max(...boxes.map((box) => box.width)) + 2 * margin;
    const height = boxes.reduce((sum, box) => sum + box.height + margin, margin);
    const canvas = document.createElement("canvas");
    const ratio = Math.min(2, 8000 / Math.max(width, height));
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.fillStyle = explorer.rgba(explorer.color("paper"));
    context.fillRect(0, 0, width, height);
    let top = margin;
    for (let i = 0; i < parts.length; i++) {
      await paint(context, parts[i], { left: boxes[i].left - margin, top: boxes[i].top - top });
      top += boxes[i].height + margin;
    }
    return canvas;
  }

  async function copy() {
    const canvas = await render();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
      explorer.message("Copied as PNG.");
    } catch {
      const link = explorer.h("a", { href: URL.createObjectURL(blob), download: `explorer-${explorer.state.view}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      explorer.message("The browser does not give the clipboard to this page: saved as a file.");
    }
  }

  return { render, copy };
})();
