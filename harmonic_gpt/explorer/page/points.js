// Many points in two dimensions, drawn by WebGL: pan, zoom and picking. Labels and lines are the caller's, on a canvas
// above. Nothing of a plotting library is needed: one program, three buffers.
"use strict";
explorer.Points = class {
  static VERTEX = `
    attribute vec2 place; attribute vec4 tint; attribute float size;
    uniform vec4 view; uniform float ratio; uniform float radius; uniform float large; varying vec4 color;
    void main() {
      // Large points, which were chosen, come in a second pass over the others
      bool shown = (size > 1.2) == (large > 0.5);
      gl_Position = shown ? vec4((place - view.xy) * view.zw, 0.0, 1.0) : vec4(2.0, 2.0, 2.0, 1.0);
      gl_PointSize = max(1.5, 2.0 * radius * size) * ratio;
      color = tint;
    }`;
  static FRAGMENT = `
    precision mediump float; varying vec4 color;
    void main() {
      float edge = length(gl_PointCoord - 0.5) * 2.0;
      float inside = 1.0 - smoothstep(0.75, 1.0, edge);
      gl_FragColor = vec4(color.rgb, 1.0) * color.a * inside;
    }`;

  // draw(context, panel): paints labels and lines; onhover(index or null), onpick(index)
  constructor(container, { draw, onhover, onpick, label }) {
    this.container = container;
    this.paint = draw;
    this.canvas = explorer.h("canvas", { class: "points" });
    this.over = explorer.h("canvas", { class: "over", tabindex: "0", role: "img", "aria-label": label });
    container.append(this.canvas, this.over);
    this.gl = this.canvas.getContext("webgl", { alpha: true, antialias: false, preserveDrawingBuffer: true, premultipliedAlpha: true });
    this.center = [0, 0];
    this.scale = 1; // pixels of the screen for a unit of the map
    this.count = 0;
    if (!this.gl) {
      container.append(explorer.h("p", { class: "no-webgl" }, "This browser has no WebGL, so the map cannot be drawn. Search and tables work."));
    } else {
      this.prepare();
    }
    this.listen(onhover, onpick);
    new ResizeObserver(() => this.request()).observe(container);
  }

  prepare() {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, explorer.Points.VERTEX], [gl.FRAGMENT_SHADER, explorer.Points.FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    this.uniforms = Object.fromEntries(["view", "ratio", "radius", "large"].map((name) => [name, gl.getUniformLocation(program, name)]));
    this.buffers = {};
    for (const [name, width, type] of [["place", 2, gl.FLOAT], ["tint", 4, gl.UNSIGNED_BYTE], ["size", 1, gl.FLOAT]]) {
      const at = gl.getAttribLocation(program, name);
      this.buffers[name] = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, width, type, type === gl.UNSIGNED_BYTE, 0, 0);
    }
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    this.canvas.addEventListener("webglcontextrestored", () => {
      this.prepare();
      this.setPoints(this.places);
      if (this.tints) this.setColors(this.tints, this.sizes);
    });
  }

  fill(name, data) {
    if (!this.gl) return;
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, data, this.gl.STATIC_DRAW);
  }

  // places: (V, 2). Also sorts them into the cells of a grid, for picking
  setPoints(places) {
    this.places = places;
    this.count = places.length / 2;
    this.fill("place", places);
    const box = this.box(null);
    const side = Math.max(1, Math.ceil(Math.sqrt(this.count / 2)));
    const [width, height] = [(box[2] - box[0]) / side || 1, (box[3] - box[1]) / side || 1];
    const cellOf = (i) => Math.min(side - 1, Math.floor((places[2 * i] - box[0]) / width)) + side * Math.min(side - 1, Math.floor((places[2 * i + 1] - box[1]) / height));
    const starts = new Uint32Array(side * side + 1);
    for (let i = 0; i < this.count; i++) starts[cellOf(i) + 1]++;
    for (let c = 0; c < side * side; c++) starts[c + 1] += starts[c];
    const next = starts.slice(0, -1);
    const members = new Uint32Array(this.count);
    for (let i = 0; i < this.count; i++) members[next[cellOf(i)]++] = i;
    this.grid = { side, box, width, height, starts, members };
    this.request();
  }

  // tints: (V, 4) bytes; sizes: (V,) factors of the radius
  setColors(tints, sizes) {
    this.tints = tints;
    this.sizes = sizes;
    this.fill("tint", tints);
    this.fill("size", sizes);
    this.request();
  }

  // [left, bottom, right, top] of some points or all
  box(points) {
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    const widen = (x, y) => {
      box[0] = Math.min(box[0], x); box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x); box[3] = Math.max(box[3], y);
    };
    if (points) for (const [x, y] of points) widen(x, y);
    else for (let i = 0; i < this.count; i++) widen(this.places[2 * i], this.places[2 * i + 1]);
    return box;
  }

  // Show a box of the map; without one, all but the outermost points, which would make the rest a spot
  frame(box, margin = 0.08) {
    const all = box ?? this.core();
    const { width, height } = this.size();
    this.center = [(all[0] + all[2]) / 2, (all[1] + all[3]) / 2];
    const room = 1 - 2 * margin;
    this.scale = Math.min((width * room) / Math.max(all[2] - all[0], 1e-9), (height * room) / Math.max(all[3] - all[1], 1e-9));
    this.home = this.home && box ? this.home : this.scale;
    this.request();
  }

  // A box, widened to some share of the map: not so near that the map is gone
  atLeast(box, share) {
    const core = this.core();
    const least = share * Math.max(core[2] - core[0], core[3] - core[1]);
    const wide = [...box];
    for (const k of [0, 1]) {
      const lack = Math.max(0, least - (box[k + 2] - box[k]));
      wide[k] -= lack / 2;
      wide[k + 2] += lack / 2;
    }
    return wide;
  }

  core() {
    const side = (k) => {
      const sorted = Float32Array.from({ length: this.count }, (_, i) => this.places[2 * i + k]).sort();
      return [sorted[Math.floor(0.002 * (this.count - 1))], sorted[Math.ceil(0.998 * (this.count - 1))]];
    };
    const [x, y] = [side(0), side(1)];
    return [x[0], y[0], x[1], y[1]];
  }

  size() {
    return { width: this.container.clientWidth || 1, height: this.container.clientHeight || 1 };
  }

  // Map -> pixels of the panel
  project(x, y) {
    const { width, height } = this.size();
    return [width / 2 + (x - this.center[0]) * this.scale, height / 2 - (y - this.center[1]) * this.scale];
  }

  at(i) {
    return this.project(this.places[2 * i], this.places[2 * i + 1]);
  }

  pick(px, py, reach = 14) {
    if (!this.grid) return null;
    const { width, height } = this.size();
    const x = this.center[0] + (px - width / 2) / this.scale;
    const y = this.center[1] - (py - height / 2) / this.scale;
    const { side, box, width: w, height: t, starts, members } = this.grid;
    const r = reach / this.scale;
    const clamp = (v) => Math.min(side - 1, Math.max(0, Math.floor(v)));
    let [best, nearest] = [null, r * r];
    for (let row = clamp((y - r - box[1]) / t); row <= clamp((y + r - box[1]) / t); row++) {
      for (let column = clamp((x - r - box[0]) / w); column <= clamp((x + r - box[0]) / w); column++) {
        const cell = row * side + column;
        for (let k = starts[cell]; k < starts[cell + 1]; k++) {
          const i = members[k];
          const away = (this.places[2 * i] - x) ** 2 + (this.places[2 * i + 1] - y) ** 2;
          if (away < nearest) [best, nearest] = [i, away];
        }
      }
    }
    return best;
  }

  zoom(factor, px, py) {
    const { width, height } = this.size();
    const [dx, dy] = [px - width / 2, py - height / 2];
    const next = Math.min(Math.max(this.scale * factor, this.home / 4), this.home * 400);
    this.center = [this.center[0] + dx / this.scale - dx / next, this.center[1] - dy / this.scale + dy / next];
    this.scale = next;
    this.request();
  }

  pan(dx, dy) {
    this.center = [this.center[0] - dx / this.scale, this.center[1] + dy / this.scale];
    this.request();
  }

  listen(onhover, onpick) {
    const { over } = this;
    const held = new Map(); // pointers that are down
    let moved = 0;
    const local = (event) => {
      const box = over.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    over.addEventListener("pointerdown", (event) => {
      over.setPointerCapture(event.pointerId);
      held.set(event.pointerId, local(event));
      moved = 0;
    });
    over.addEventListener("pointermove", (event) => {
      const [x, y] = local(event);
      if (!held.has(event.pointerId)) { onhover?.(this.pick(x, y)); return; }
      const [px, py] = held.get(event.pointerId);
      const before = [...held.values()];
      held.set(event.pointerId, [x, y]);
      moved += Math.abs(x - px) + Math.abs(y - py);
      if (held.size === 2) {
        const after = [...held.values()];
        const span = ([p, q]) => Math.hypot(p[0] - q[0], p[1] - q[1]);
        this.zoom(span(after) / Math.max(span(before), 1), (after[0][0] + after[1][0]) / 2, (after[0][1] + after[1][1]) / 2);
      } else this.pan(x - px, y - py);
    });
    const release = (event) => {
      if (held.delete(event.pointerId) && event.type === "pointerup" && moved < 5) {
        const found = this.pick(...local(event));
        if (found !== null) onpick?.(found);
      }
    };
    over.addEventListener("pointerup", release);
    over.addEventListener("pointercancel", release);
    over.addEventListener("pointerleave", () => onhover?.(null));
    over.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), ...local(event));
    }, { passive: false });
    over.addEventListener("dblclick", () => this.frame(null));
    over.addEventListener("keydown", (event) => {
      const { width, height } = this.size();
      const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
      const factor = { "+": 1.3, "=": 1.3, "-": 1 / 1.3 }[event.key];
      if (step) this.pan(...step);
      else if (factor) this.zoom(factor, width / 2, height / 2);
      else if (event.key === "0") this.frame(null);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  request() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.render(); });
  }

  render() {
    const { width, height } = this.size();
    if (width < 2 || !this.places) return;
    const ratio = explorer.fit(this.over, width, height);
    const { gl } = this;
    if (gl && this.tints) {
      explorer.fit(this.canvas, width, height);
      gl.viewport(0, 0, this.canvas.width, this.canvas.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      const zoom = this.scale / (this.home || this.scale);
      const base = Math.min(3, Math.max(1.1, 2.4 * (4000 / this.count) ** 0.25));
      gl.uniform4f(this.uniforms.view, ...this.center, (2 * this.scale) / width, (2 * this.scale) / height);
      gl.uniform1f(this.uniforms.ratio, ratio);
      gl.uniform1f(this.uniforms.radius, base * Math.min(3, Math.max(0.8, zoom ** 0.35)));
      for (const large of [0, 1]) {
        gl.uniform1f(this.uniforms.large, large);
        gl.drawArrays(gl.POINTS, 0, this.count);
      }
    }
    const context = this.over.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (gl) this.paint(context, this);
  }
};
