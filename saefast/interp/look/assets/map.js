// The map of the dictionary: a point for each latent, drawn on a canvas. The list is the same for those who cannot use it.
"use strict";

saefast.map = (() => {
  const { el, percent, data } = saefast;
  const CELLS = 256; // of the grid in which the nearest point is looked for
  let places, clusters, canvas, tip, by, reading;
  let view = { x: 0, y: 0, scale: 1 }; // the middle, and pixels per unit
  let base = 1; // the scale that shows everything
  let grid, box;
  let hovered = -1;
  let asked = false;

  // Colours of the density from rare to frequent, and of clusters, both readable on either background.
  function ramp(share, dark) {
    const t = share > 0 ? Math.max(0, Math.min(1, 1 + Math.log10(share) / 5)) : 0;
    return `hsl(${(265 - 245 * t).toFixed(0)} ${share > 0 ? 70 : 0}% ${dark ? 48 + 22 * t : 62 - 20 * t}%)`;
  }
  const clusterColour = (cluster, dark) => (cluster < 0 ? (dark ? "#5c5a55" : "#bdb9b0") : `hsl(${((cluster * 137.508) % 360).toFixed(0)} 62% ${dark ? 62 : 42}%)`);

  function prepare() {
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < data.n; i++) {
      const [x, y] = [places[2 * i], places[2 * i + 1]];
      if (Number.isNaN(x)) continue;
      (left = Math.min(left, x)), (right = Math.max(right, x)), (top = Math.min(top, y)), (bottom = Math.max(bottom, y));
    }
    if (left > right) [left, right, top, bottom] = [0, 1, 0, 1];
    box = { left, top, width: right - left || 1, height: bottom - top || 1 };
    grid = new Map();
    for (let i = 0; i < data.n; i++) {
      if (Number.isNaN(places[2 * i])) continue;
      const key = cell(places[2 * i], places[2 * i + 1]);
      grid.has(key) ? grid.get(key).push(i) : grid.set(key, [i]);
    }
  }
  const column = (x) => Math.floor(((x - box.left) / box.width) * (CELLS - 1));
  const line = (y) => Math.floor(((y - box.top) / box.height) * (CELLS - 1));
  const cell = (x, y) => column(x) * CELLS + line(y);

  function fit() {
    base = Math.min(canvas.clientWidth / box.width, canvas.clientHeight / box.height) * 0.94;
    view = { x: box.left + box.width / 2, y: box.top + box.height / 2, scale: base };
    draw();
  }

  function draw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(paint);
  }

  function paint() {
    asked = false;
    if (!canvas.isConnected || !canvas.clientWidth) return;
    const ratio = devicePixelRatio || 1;
    const [wide, high] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      (canvas.width = Math.round(wide * ratio)), (canvas.height = Math.round(high * ratio));
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, wide, high);
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    const radius = Math.max(0.9, Math.min(6, (data.n > 2e4 ? 1 : 1.9) * Math.sqrt(view.scale / base)));
    const found = saefast.list.query ? new Set(saefast.list.order) : null;
    const colours = new Map(); // points of a colour are drawn together
    for (let i = 0; i < data.n; i++) {
      const [x, y] = at(i);
      if (!(x > -9 && x < wide + 9 && y > -9 && y < high + 9)) continue;
      let colour = by === "cluster" ? clusterColour(clusters[i], dark) : ramp(Math.round(Math.log10(data.density(i) || 1e-9) * 8) <= -72 ? 0 : 10 ** (Math.round(Math.log10(data.density(i)) * 8) / 8), dark);
      if (found && !found.has(i)) colour = dark ? "#383632" : "#e2dfd8";
      colours.has(colour) ? colours.get(colour).push(x, y) : colours.set(colour, [x, y]);
    }
    pen.globalAlpha = 0.85;
    for (const [colour, points] of colours) {
      pen.fillStyle = colour;
      pen.beginPath();
      for (let i = 0; i < points.length; i += 2) {
        if (radius < 1.5) pen.rect(points[i] - radius, points[i + 1] - radius, 2 * radius, 2 * radius);
        else pen.moveTo(points[i] + radius, points[i + 1]), pen.arc(points[i], points[i + 1], radius, 0, 7);
      }
      pen.fill();
    }
    pen.globalAlpha = 1;
    if (hovered >= 0) {
      const [x, y] = at(hovered);
      pen.strokeStyle = dark ? "#fff" : "#000";
      pen.lineWidth = 1.5;
      pen.beginPath(), pen.arc(x, y, radius + 3, 0, 7), pen.stroke();
    }
  }

  const at = (i) => [(places[2 * i] - view.x) * view.scale + canvas.clientWidth / 2, (places[2 * i + 1] - view.y) * view.scale + canvas.clientHeight / 2];

  // The nearest point to a place on the canvas, not more than 14 pixels away.
  function nearest(px, py) {
    const x = (px - canvas.clientWidth / 2) / view.scale + view.x;
    const y = (py - canvas.clientHeight / 2) / view.scale + view.y;
    const reach = 14 / view.scale;
    let found = -1;
    let least = reach * reach;
    for (let c = Math.max(0, column(x - reach)); c <= Math.min(CELLS - 1, column(x + reach)); c++) {
      for (let l = Math.max(0, line(y - reach)); l <= Math.min(CELLS - 1, line(y + reach)); l++) {
        for (const i of grid.get(c * CELLS + l) ?? []) {
          const far = (places[2 * i] - x) ** 2 + (places[2 * i + 1] - y) ** 2;
          if (far < least) (least = far), (found = i);
        }
      }
    }
    return found;
  }

  function hover(i) {
    if (i === hovered) return;
    hovered = i;
    tip.hidden = i < 0;
    canvas.classList.toggle("pointing", i >= 0);
    if (i >= 0) {
      const [x, y] = at(i);
      const cluster = clusters ? ` · ${clusters[i] < 0 ? "no cluster" : `cluster ${clusters[i]}`}` : "";
      tip.replaceChildren(el("b", {}, `Latent ${data.head.latent[i]}`), ` ${percent(data.density(i))}${cluster}`, el("div", {}, saefast.latent.saysOf(i)));
      tip.style.left = `${Math.min(Math.max(0, x + 12), Math.max(0, canvas.clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${y + 14 + tip.offsetHeight > canvas.clientHeight ? y - tip.offsetHeight - 10 : y + 14}px`;
    }
    draw();
  }

  function zoom(factor, px = canvas.clientWidth / 2, py = canvas.clientHeight / 2) {
    const scale = Math.max(base * 0.5, Math.min(base * 4000, view.scale * factor));
    const [dx, dy] = [px - canvas.clientWidth / 2, py - canvas.clientHeight / 2];
    view = { scale, x: view.x + dx / view.scale - dx / scale, y: view.y + dy / view.scale - dy / scale };
    hover(-1), draw();
  }

  function pan(dx, dy) {
    (view.x -= dx / view.scale), (view.y -= dy / view.scale);
    hover(-1), draw();
  }

  const held = new Map(); // pointers that are down -> where
  function pointers() {
    let moved = 0;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, [event.offsetX, event.offsetY]);
      if (held.size === 1) moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) return hover(nearest(event.offsetX, event.offsetY));
      const [dx, dy] = [event.offsetX - before[0], event.offsetY - before[1]];
      moved += Math.abs(dx) + Math.abs(dy);
      if (held.size === 1) pan(dx, dy);
      else {
        const [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
        const far = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
        zoom(far([event.offsetX, event.offsetY]) / far(before), other[0], other[1]);
      }
      held.set(event.pointerId, [event.offsetX, event.offsetY]);
    });
    const up = (event) => {
      const one = held.size === 1 && held.delete(event.pointerId);
      held.delete(event.pointerId);
      if (one && moved < 5 && event.type === "pointerup") {
        const i = nearest(event.offsetX, event.offsetY);
        if (i >= 0) location.hash = `#latent/${data.head.latent[i]}`;
      }
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", () => hover(-1));
    canvas.addEventListener("wheel", (event) => (event.preventDefault(), zoom(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY)), { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
      if (moves[event.key]) pan(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") zoom(1.4);
      else if (event.key === "-") zoom(1 / 1.4);
      else if (event.key === "0") fit();
      else if (event.key === "Enter" && hovered >= 0) location.hash = `#latent/${data.head.latent[hovered]}`;
      else if (event.key === "n") hover(nextOf(hovered));
      else return;
      event.preventDefault(), event.stopPropagation();
    });
  }

  // The keyboard's way from point to point in view.
  function nextOf(from) {
    for (let k = 1; k <= data.n; k++) {
      const i = (from + k) % data.n;
      const [x, y] = at(i);
      if (x >= 0 && y >= 0 && x <= canvas.clientWidth && y <= canvas.clientHeight) return i;
    }
    return -1;
  }

  async function show(section) {
    if (!data.head.map) return void section.replaceChildren(el("h1", { tabindex: "-1" }, "Map"), el("p", {}, "This site was written without a map (coordinates)."));
    reading ??= saefast.load("map");
    const found = await reading;
    await saefast.tokens.ready();
    if (canvas) return draw();
    ({ places, clusters } = found);
    by = clusters ? "cluster" : "density";
    prepare();
    canvas = el("canvas", { tabindex: "0", role: "application", "aria-label": `Map of ${saefast.count(data.n)} latents. Arrow keys move it, plus and minus zoom, 0 shows all, n goes to the next latent in view, Enter opens it. The list of latents has the same ones.` });
    tip = el("div", { class: "tip", hidden: true, role: "status" });
    const colour = el("select", { id: "map-colour", onchange: () => ((by = colour.value), draw()) }, ["density", ...(clusters ? ["cluster"] : [])].map((one) => el("option", { value: one }, one)));
    colour.value = by;
    section.replaceChildren(
      el("div", { class: "heading" }, el("h1", { tabindex: "-1" }, "Map"), el("div", { class: "steps" }, el("label", { class: "field" }, "colour ", colour),
        el("button", { type: "button", onclick: () => zoom(1.6), "aria-label": "Closer" }, "+"), el("button", { type: "button", onclick: () => zoom(1 / 1.6), "aria-label": "Farther" }, "−"), el("button", { type: "button", onclick: fit }, "all"), el("a", { href: "#list" }, "as a list"))),
      el("p", { class: "legend" }, "A point is a latent; near ones have similar decoder directions. Drag, scroll or pinch; a click opens. While something is searched for, only what matches is coloured."),
      el("div", { class: "map" }, canvas, tip));
    pointers();
    fit();
    new ResizeObserver(() => draw()).observe(canvas);
  }
  return { show, redraw: () => canvas && draw() };
})();
