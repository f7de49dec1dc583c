"use strict"
{
  const data = JSON.parse(document.getElementById("data").textContent)
  const at = id => document.getElementById(id)
  const [width, height] = data.size, [wide, high] = data.metres
  const COLOURS = ["#ffe600", "#ff3df2"], KINDS = {image: "image", classes: "classes", confidence: "confidence"}
  const two = data.maps.length > 1
  const nameOf = k => data.maps[k].date || data.maps[k].name
  const made = (tag, text, parent) => {
    const node = document.createElement(tag)
    if (text !== undefined) node.textContent = text
    if (parent) parent.append(node)
    return node
  }

  // the map: its units are metres on the ground, from the lower left corner

  const bounds = [[0, 0], [height * high, width * wide]]
  const map = L.map("map", {crs: L.CRS.Simple, attributionControl: false, zoomControl: false, zoomAnimation: false, zoomSnap: 0.25,
    zoomDelta: 0.5, wheelPxPerZoomLevel: 120, minZoom: -30, maxZoom: 4 - Math.log2(Math.min(wide, high)), maxBoundsViscosity: 0.8,
    boxZoom: true})
  L.control.zoom({position: "bottomright"}).addTo(map)
  L.control.scale({imperial: false, maxWidth: 120}).addTo(map)
  for (const side of ["left", "right"]) map.createPane(side).style.zIndex = 250
  map.createPane("lines").style.zIndex = 400
  const lines = L.canvas({pane: "lines", padding: 0.3, tolerance: 4})

  const whole = () => map.fitBounds(bounds, {animate: false})
  whole()
  map.setMinZoom(map.getZoom() - 1)
  map.setMaxBounds(L.latLngBounds(bounds).pad(0.5))
  at("whole").addEventListener("click", whole)

  const split = () => {
    const share = at("swipe").value / 100, size = map.getSize()
    const a = map.containerPointToLayerPoint([0, 0]), b = map.containerPointToLayerPoint(size), x = a.x + share * size.x
    const box = (l, r) => `polygon(${l}px ${a.y}px, ${r}px ${a.y}px, ${r}px ${b.y}px, ${l}px ${b.y}px)`
    map.getPane("left").style.clipPath = box(a.x, x)
    map.getPane("right").style.clipPath = box(x, b.x)
    at("stage").style.setProperty("--at", share * 100 + "%")
    at("swipe").setAttribute("aria-valuetext",
      `${at("swipe").value} % ${at("left-name").textContent}, the rest ${at("right-name").textContent}`)
    at("map").classList.toggle("near", 2 ** map.getZoom() * wide > 1.5)
  }
  map.on("move zoom resize viewreset", split)
  at("swipe").addEventListener("input", split)
  new ResizeObserver(() => map.invalidateSize({pan: false})).observe(at("stage"))

  // what is shown on either side of the line

  const over = {left: null, right: null}, shown = {left: [], right: []}
  const overlay = (k, kind, pane) => L.imageOverlay(data.maps[k].layers[kind], bounds, {pane, interactive: false,
    alt: `${KINDS[kind]}, ${nameOf(k)}`}).addTo(map)
  const show = side => {
    const [k, kind] = at(side).value.split(" "), layers = data.maps[k].layers
    for (const layer of shown[side]) layer.remove()
    shown[side] = layers.image ? [overlay(k, "image", side)] : []
    over[side] = kind === "image" ? null : overlay(k, kind, side)
    if (over[side]) shown[side].push(over[side])
    at(side + "-name").textContent = two ? `${nameOf(k)}, ${KINDS[kind]}` : KINDS[kind]
    fade()
    split()
  }
  const fade = () => {
    at("opacity").setAttribute("aria-valuetext", at("opacity").value + " %")
    for (const layer of Object.values(over)) if (layer) layer.setOpacity(at("opacity").value / 100)
  }
  at("opacity").addEventListener("input", fade)
  data.maps.forEach((each, k) => {
    for (const side of ["left", "right"]) {
      for (const kind of Object.keys(KINDS)) {
        if (each.layers[kind]) made("option", two ? `${nameOf(k)}: ${KINDS[kind]}` : KINDS[kind], at(side)).value = `${k} ${kind}`
      }
    }
  })
  const last = data.maps.length - 1
  at("left").value = two || !data.maps[0].layers.image ? "0 classes" : "0 image"
  at("right").value = !two && !data.maps[0].layers.image && data.maps[0].layers.confidence ? "0 confidence" : `${last} classes`
  for (const side of ["left", "right"]) {
    at(side).addEventListener("change", () => show(side))
    show(side)
  }

  // outlines, and a row of the table for each

  const outline = row => row.outline.map(rings => rings.map(steps => {
    const ring = []
    for (let i = 0, x = 0, y = 0; i < steps.length; i += 2) {
      x += steps[i]
      y += steps[i + 1]
      ring.push([(height - y / data.part) * high, x / data.part * wide])
    }
    return ring
  }))
  const number = (value, unit) => {
    if (value === null) return "–"
    if (unit === "%") return (100 * value).toFixed(0)
    const digits = value < 1 ? 3 : value < 100 ? 2 : 1
    return value.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits})
  }
  const called = row => row.name || row.id || "new, without id"
  const says = row => [called(row), ...(two ? [nameOf(row.map)] : []),
    ...data.columns.filter(c => row[c[0]] !== null).map(([key, title, unit]) => `${title.toLowerCase()} ${number(row[key], unit)} ${unit}`),
    ...(row.outline.length ? [] : ["no outline on this page"])].join(", ")
  const far = () => 2 ** map.getZoom() * wide < 0.25
  const style = row => ({color: COLOURS[row.map], weight: far() ? 0.7 : 1.5, opacity: 1, fill: true, fillOpacity: 0, renderer: lines, pane: "lines"})
  const group = L.layerGroup().addTo(map)
  const casing = L.polyline([], {color: "#000", weight: 7, opacity: 0.65, renderer: lines, pane: "lines", interactive: false})
  const under = L.polyline([], {color: "#000", weight: 3.5, opacity: 0.5, renderer: lines, pane: "lines", interactive: false}).addTo(group)
  const closed = shape => shape.getLatLngs().flat().map(ring => [...ring, ring[0]])
  let chosen = null

  const select = (row, from) => {
    if (chosen) {
      if (chosen.shape) chosen.shape.setStyle(style(chosen))
      chosen.line.removeAttribute("aria-current")
    }
    casing.remove()
    chosen = row
    at("said").textContent = row ? says(row) : ""
    if (!row) return
    row.line.setAttribute("aria-current", "true")
    if (row.shape) {
      if (at("outlines").checked) casing.setLatLngs(closed(row.shape)).addTo(map)
      row.shape.setStyle({color: "#fff", weight: 3}).bringToFront()
    }
    if (from === "table" && row.shape) {
      map.fitBounds(row.shape.getBounds().pad(0.3), {maxZoom: -Math.log2(Math.min(wide, high)) + 1, animate: false})
    } else if (from === "map") {
      if (row.line.hidden) {
        at("find").value = ""
        find()
      }
      row.line.querySelector("button").focus({preventScroll: true})
      seen(row.line)
    }
  }
  const seen = line => {
    const box = at("rows"), head = box.querySelector("thead").offsetHeight
    if (box.scrollHeight > box.clientHeight) box.scrollTop = line.offsetTop - head - (box.clientHeight - head - line.offsetHeight) / 2
    const under = at("stage").getBoundingClientRect()
    if (under.width >= document.documentElement.clientWidth) {  // the map lies above the table, and stays there
      scrollTo({top: scrollY + line.getBoundingClientRect().top - under.bottom - 40})
    }
  }

  const head = made("tr", undefined, document.querySelector("thead")), body = document.querySelector("tbody")
  const columns = [["called", "Glacier", ""], ...data.columns]
  let sorted = ["area_km2", -1]
  const sort = () => {
    const [key, way] = sorted
    const value = row => key === "called" ? called(row) : row[key]
    data.rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)]
      if (x === null || y === null) return (x === null) - (y === null)
      return way * (typeof x === "string" ? x.localeCompare(y, "en", {numeric: true}) : x - y)
    })
    body.append(...data.rows.map(row => row.line))
    for (const cell of head.children) {
      cell.dataset.key === key ? cell.setAttribute("aria-sort", way > 0 ? "ascending" : "descending") : cell.removeAttribute("aria-sort")
    }
  }
  for (const [key, title, unit] of columns) {
    const cell = made("th", undefined, head)
    cell.scope = "col"
    cell.dataset.key = key
    const button = made("button", undefined, cell)
    button.type = "button"
    made("span", title, button)
    if (unit) made("small", unit, button)
    button.addEventListener("click", () => {
      sorted = [key, sorted[0] === key ? -sorted[1] : key === "called" ? 1 : -1]
      sort()
    })
  }
  for (const row of data.rows) {
    row.line = made("tr")
    const first = made("th", undefined, row.line), button = made("button", called(row), first)
    first.scope = "row"
    button.type = "button"
    if (row.name && row.id) made("small", row.id, button)
    if (two) made("small", nameOf(row.map), button)
    for (const [key, , unit] of data.columns) {
      const cell = made("td", number(row[key], unit), row.line)
      if (key === "area_km2" && row.area_low_km2 !== null && row.area_high_km2 !== null) {
        made("small", `${number(row.area_low_km2)} to ${number(row.area_high_km2)}`, cell).title = "90 % interval"
      }
    }
    row.line.addEventListener("click", () => select(row, "table"))
    if (!row.outline.length) continue
    row.shape = L.polygon(outline(row), style(row)).on("click", () => select(row, "map")).addTo(group)
    row.shape.bindTooltip(() => made("span", says(row)), {sticky: true, opacity: 1})
  }
  let thin = far()
  map.on("zoomend", () => {
    if (thin === far()) return
    thin = far()
    under.setStyle({opacity: thin ? 0 : 0.5})
    for (const row of data.rows) if (row.shape && row !== chosen) row.shape.setStyle(style(row))
  })
  under.setStyle({opacity: thin ? 0 : 0.5})
  under.setLatLngs(data.rows.filter(row => row.shape).flatMap(row => closed(row.shape)))
  at("outlines").addEventListener("change", () => {
    const on = at("outlines").checked
    on ? group.addTo(map) : group.remove()
    on && chosen ? select(chosen) : casing.remove()
  })
  const find = () => {
    const wanted = at("find").value.trim().toLowerCase()
    let many = 0
    for (const row of data.rows) {
      row.line.hidden = !`${called(row)} ${row.id} ${two ? nameOf(row.map) : ""}`.toLowerCase().includes(wanted)
      many += !row.line.hidden
    }
    at("count").textContent = `${many.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")}`
  }
  at("find").addEventListener("input", find)
  document.addEventListener("keydown", event => event.key === "Escape" && select(null))
  at("pixel").textContent = [...new Set([wide, high].map(v => v.toFixed(1)))].join(" x ")
  for (const id of ["find-row", "rows"]) at(id).hidden = !data.rows.length
  at("outlines").closest("label").hidden = !data.rows.length
  sort()
  find()
  window.glacierMap = {map, rows: data.rows}
}
