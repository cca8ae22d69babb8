// Histograms as SVG, with their numbers as text for those who do not see them.
"use strict";

saefast.charts = (() => {
  const { el, number, count } = saefast;
  const WIDTH = 352, HEIGHT = 84, FOOT = 14;

  function svg(tag, properties, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // counts [n] over [from, to]; log: heights by log(1 + count); marks: parts of equal width that are marked below.
  function histogram(counts, from, to, { label, log = false, marks = 0, signed = false }) {
    const n = counts.length;
    const height = (value) => (log ? Math.log1p(value) : value);
    const largest = Math.max(1e-9, height(Math.max(...counts)));
    const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + FOOT}`, class: "chart", role: "img", "aria-label": label });
    const x = (value) => ((value - from) / (to - from || 1)) * WIDTH;
    for (let i = 0; i < marks; i++) {
      const left = (i / marks) * WIDTH;
      chart.append(svg("rect", { x: left, y: HEIGHT, width: WIDTH / marks, height: 3, class: i % 2 ? "mark odd" : "mark" }));
    }
    for (let i = 0; i < n; i++) {
      if (!counts[i]) continue;
      const low = from + ((to - from) * i) / n;
      const high = from + ((to - from) * (i + 1)) / n;
      const tall = Math.max(1, (height(counts[i]) / largest) * (HEIGHT - 4));
      const side = signed ? (low + high < 0 ? "bar below" : "bar above") : "bar";
      const bar = svg("rect", { x: x(low) + 0.5, y: HEIGHT - tall, width: WIDTH / n - 1, height: tall, class: side });
      bar.append(svg("title", {}, `${number(low)} to ${number(high)}: ${count(counts[i])}`));
      chart.append(bar);
    }
    if (signed && from < 0 && to > 0) chart.append(svg("line", { x1: x(0), x2: x(0), y1: 0, y2: HEIGHT, class: "zero" }));
    const ends = [[0, "start", from], [WIDTH, "end", to]];
    for (const [at, anchor, value] of ends) chart.append(svg("text", { x: at, y: HEIGHT + FOOT - 1, "text-anchor": anchor }, number(value)));
    return chart;
  }

  // A share of (0, 1] on a logarithmic scale from one in ten million on, as a small bar.
  function density(share) {
    const size = share > 0 ? Math.max(0.02, 1 + Math.log10(share) / 7) : 0;
    const bar = el("span", { class: "density-bar", "aria-hidden": "true" });
    bar.style.setProperty("--size", size.toFixed(3));
    return bar;
  }
  return { histogram, density };
})();
