// circuit-tracer's own loader and list of examples, run in Node: node circuit_tracer_pages.js ASSETS URL < {ids, feature}
// prints {loaded: [feature of each id, over HTTP], shown: [the tokens of each example of `feature`]}.
const fs = require('fs'), path = require('path'), vm = require('vm'), zlib = require('zlib')
const [assets, url] = process.argv.slice(2)

globalThis.window = globalThis
globalThis.location = { hostname: 'localhost', href: url }
globalThis.isLocalServing = true
const overHttp = fetch
globalThis.fetch = (where, options) => overHttp(new URL(where, url), options)
globalThis.pako = { inflate: (bytes) => zlib.unzipSync(bytes).toString('utf8') } // gzip and zlib, as pako's does

// What the pages ask of d3: selections that keep their data, and of which the tokens are written down.
const shown = []
function selection(data = [null]) {
  const known = {
    appendMany(tag, value) {
      const rows = data.flatMap((d) => (typeof value === 'function' ? value(d) : value))
      if (tag === 'span.token' && rows.length) shown.push(rows.map((d) => d.token ?? d))
      return selection(rows)
    },
    each(draw) { data.forEach((d) => draw.call({ data: d }, d)); return this },
    text(value) { data.forEach((d) => typeof value === 'function' && value(d)); return this },
    node: () => null,
  }
  const self = new Proxy(known, { get: (own, name) => own[name] ?? (() => self) })
  return self
}
const scale = () => Object.assign((act) => act, { domain: scale, clamp: scale })
globalThis.d3 = { select: (node) => selection([node.data]), scaleSequential: scale, interpolateOranges: null }

for (const name of ['util.js', 'feature_examples/init-feature-examples.js',
  'feature_examples/init-feature-examples-list.js', 'feature_examples/init-feature-examples-logits.js'])
  vm.runInThisContext(fs.readFileSync(path.join(assets, name), 'utf8'), name)

async function main() {
  const { ids, feature } = JSON.parse(fs.readFileSync(0, 'utf8'))
  const { loadFeature } = window.initFeatureExamples({ containerSel: selection() })
  const loaded = []
  for (const id of ids) loaded.push(await loadFeature('/features', id))
  const renderAll = util.initRenderAll(['feature'])
  window.initFeatureExamplesList({ renderAll, visState: { feature: { ...feature, colorScale: scale } }, sel: selection() })
  for (const draw of renderAll.feature.fns) await draw()
  console.log(JSON.stringify({ loaded, shown }))
}
main()
