"""Texts that would run if any of them were read as HTML, as a script or as an address, and a look at a page's accessibility."""

INJECTIONS = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "<svg onload=alert(4)>",
    '"><b onmouseover=alert(5)>',
    "'-alert(6)-'",
    "javascript:alert(7)",
    "<!--<script>",
    "]]><script>alert(8)</script>",
    "\u2028alert(9)\u2029",
    "${alert(10)}`",
    "<iframe srcdoc='<script>parent.alert(11)</script>'>",
    "<style>*{display:none}</style>",
    "<base href=//evil.example/>",
    "&lt;script&gt;alert(12)&lt;/script&gt;",
    '<math><mi//xlink:href="data:x,<script>alert(13)</script>">',
    "\\u003cscript\\u003ealert(14)",
    "<a href=javascript:alert(15)>x</a>",
    "__proto__",
]

# What is wrong on the page: controls without a name, ids twice, text with a contrast below 4.5 (3 for large text), roles that
# need a parent, no heading. An expression of JavaScript, after the rules of WCAG 2.1 that a machine can look at.
accessibility = r"""(() => {
  const wrong = [];
  const seen = (e) => e.checkVisibility() && !e.closest(".hidden, .skip");
  const name = (e) => e.getAttribute("aria-label") || e.textContent.trim() || e.title || (e.labels && [...e.labels].map((l) => l.textContent).join("")) || "";
  for (const e of document.querySelectorAll("a, button, input, select, canvas, [role=img], [role=table], [role=listbox], dialog, [tabindex='0']"))
    if (seen(e) && !name(e).trim()) wrong.push(`no name: ${e.outerHTML.slice(0, 120)}`);
  const ids = new Set();
  for (const e of document.querySelectorAll("[id]")) ids.has(e.id) ? wrong.push(`id twice: ${e.id}`) : ids.add(e.id);
  const parents = { row: "rowgroup, [role=table]", cell: "row", columnheader: "row", listitem: "list", option: "listbox" };
  for (const [role, parent] of Object.entries(parents)) for (const e of document.querySelectorAll(`[role=${role}]`))
    if (!e.closest(`[role=${parent.replace(/, .*/, "")}]`)) wrong.push(`${role} outside of ${parent}`);
  if ([...document.querySelectorAll("h1")].filter(seen).length !== 1) wrong.push("not one h1");
  if (!document.documentElement.lang || !document.title) wrong.push("no language or title");
  const rgba = (text) => { const n = text.match(/[\d.]+/g).map(Number); if (text.startsWith("color(srgb")) { n[0] *= 255; n[1] *= 255; n[2] *= 255; } return n.length < 4 ? [...n, 1] : n; };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { const chain = []; for (let p = e; p; p = p.parentElement) chain.unshift(rgba(getComputedStyle(p).backgroundColor)); return chain.reduce((under, top) => over(top, under), [255, 255, 255, 1]); };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const poor = new Set();
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !seen(e) || e.closest("[aria-disabled], option, canvas, title, text")) continue;
    const style = getComputedStyle(e);
    const back = behind(e), ink = over(rgba(style.color), back);
    const [a, b] = [light(ink.slice(0, 3)), light(back.slice(0, 3))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) poor.add(`contrast ${contrast.toFixed(2)}: <${e.tagName} class="${e.className}"> in ${e.parentElement.className}`);
  }
  return [...wrong, ...poor];
})()"""
