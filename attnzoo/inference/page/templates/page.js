// Draws the page: the picture with what the chosen query attends to, and the controls.
const boxOf = (query, of = picture()) => of.boxes[of.boxes.length - 1][query];
const byScore = () => [...picture().scores.keys()].sort((a, b) => picture().scores[b] - picture().scores[a]);
const isVisible = (query) => picture().scores[query] >= Number($("threshold").value);
const area = ([x1, y1, x2, y2]) => Math.max(x2 - x1, 0) * Math.max(y2 - y1, 0);
const overlap = (a, b) => {
  const common = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return common / (area(a) + area(b) - common || 1);
};
const queryAt = (x, y) => {
  const holds = (query) => { const [x1, y1, x2, y2] = boxOf(query); return x1 <= x && x <= x2 && y1 <= y && y <= y2; };
  const kept = layer().kept, stored = kept === null ? byScore() : byScore().filter((query) => kept.includes(query));
  let found = stored.filter((query) => isVisible(query) && holds(query)).sort((a, b) => area(boxOf(a)) - area(boxOf(b)));
  if (!found.length) found = stored.filter(holds).slice(0, 1);
  if (found.length) return found[(found.indexOf(state.query) + 1) % found.length];  // another click, the next box
  const distance = (query) => { const [x1, y1, x2, y2] = boxOf(query); return Math.hypot((x1 + x2) / 2 - x, (y1 + y2) / 2 - y); };
  return stored.reduce((best, query) => (distance(query) < distance(best) ? query : best));
};

const describe = (of) => {
  const image = picture();
  if (!of.onGrid) return `${image.labels[state.query]} ${image.scores[state.query].toFixed(2)} · query ${state.query}`;
  const { level, x, y } = tokenOf(of, state.query);
  return `token${of.queryLevels.length > 1 ? ` of level ${level}` : ""} at (${Math.round(x * image.width)}, ${Math.round(y * image.height)})`;
};
const viewBox = (of, image) => {
  if (!state.zoom) return [0, 0, image.width, image.height];
  let [x, y] = referenceOf(of, state.query) ?? [0.5, 0.5], size = 0.3;
  if (!of.onGrid) {
    const [x1, y1, x2, y2] = boxOf(state.query);
    [x, y, size] = [(x1 + x2) / 2, (y1 + y2) / 2, Math.min(Math.max(x2 - x1, y2 - y1, 0.05) * 2, 1)];
  }
  const low = (center) => Math.min(Math.max(center - size / 2, 0), 1 - size);
  return [low(x) * image.width, low(y) * image.height, size * image.width, size * image.height];
};

const render = async () => {
  const turn = ++rendering, of = layer(), image = picture(), arrays = await decode(of);
  if (turn !== rendering) return;
  const slot = arrays.slots === null ? state.query : arrays.slots.get(state.query) ?? arrays.slots.values().next().value;
  if (arrays.slots !== null) state.query = of.kept[slot];
  const { width: W, height: H } = image, view = $("view"), box = viewBox(of, image), keys = keysOf(of, arrays, slot, headsShown(of));
  document.documentElement.style.setProperty("--aspect", W / H);
  view.setAttribute("viewBox", box.join(" "));
  const unit = box[2] / (view.clientWidth || 600), radius = Math.min(Math.max(view.clientWidth / 48, 7), 14) * unit;
  const shapes = [element("image", { href: image.source, width: W, height: H, preserveAspectRatio: "none", ...(W < 400 && { style: "image-rendering: pixelated" }) }),
    element("rect", { width: W, height: H, fill: "#000", opacity: 0.35 })];
  const rectangle = ([x1, y1, x2, y2], attributes) => element("rect", { x: x1 * W, y: y1 * H, width: Math.max(x2 - x1, 0) * W,
    height: Math.max(y2 - y1, 0) * H, fill: "none", "vector-effect": "non-scaling-stroke", ...attributes });
  const line = ([ax, ay], [bx, by], attributes) => element("line", { x1: ax * W, y1: ay * H, x2: bx * W, y2: by * H,
    stroke: "#fff", "stroke-width": 1, "vector-effect": "non-scaling-stroke", ...attributes });
  const net = (points, attributes) => points.flatMap((row, i) => row.flatMap((point, j) => [
    ...(j ? [line(row[j - 1], point, attributes)] : []), ...(i ? [line(points[i - 1][j], point, attributes)] : [])]));
  const isMap = of.kind !== POINTS && of.kind !== GRID && of.exact;
  density = isMap ? densityOf(of, keys) : null;
  if (isMap) shapes.push(heatmap(density, W, H));
  if (image.boxes.length) for (const query of byScore().filter((each) => isVisible(each) || (each === state.query && !of.onGrid))) {
    const chosen = query === state.query && !of.onGrid;
    shapes.push(rectangle(boxOf(query, image), { class: "box", "data-query": query, stroke: chosen ? BOX : "#fff",
      "stroke-width": chosen ? 2.5 : 1, opacity: chosen ? 1 : of.onGrid ? 0.3 : 0.55 }));
  }
  const reference = referenceOf(of, state.query);
  if (of.kind === GRID && of.grids) of.grids.forEach((grid, level) => {
    shapes.push(...net(grid, { opacity: 0.45, "stroke-width": 0.7 }));
    const groups = new Set(keys.map((key) => key.group));
    for (const group of groups) {
      const own = keys.filter((key) => key.level === level && key.group === group), columns = grid[0].length;
      const points = grid.map((_, row) => own.slice(row * columns, (row + 1) * columns).map(({ x, y }) => [x, y]));
      shapes.push(...net(points, { stroke: color(of.levels.length > 1 ? level : group), opacity: groups.size > 1 ? 0.45 : 0.9 }));
    }
  });
  if (reference && reference.length === 4) {
    const [cx, cy, w, h] = reference;
    shapes.push(rectangle([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], { class: "reference", stroke: "#fff", "stroke-width": 1.2, "stroke-dasharray": "2 3" }));
  }
  if (reference && of.kind === POINTS && state.head !== null) for (const { x, y } of keys) shapes.push(line(reference, [x, y], { opacity: 0.6 }));
  if (!isMap) {
    const highest = keys.reduce((most, { weight }) => Math.max(most, weight), 1e-12), limit = of.maxBias || 1;
    const scale = of.kind === GRID ? 0.7 : 1;
    for (const key of [...keys].sort((a, b) => b.weight - a.weight)) {
      const fill = state.bias && key.bias !== null ? `rgb(${mix(BIAS, key.bias / limit / 2 + 0.5)})` : color(key.tint);
      shapes.push(element("circle", { class: "key", cx: key.x * W, cy: key.y * H, r: Math.max(scale * radius * Math.sqrt(key.weight / highest), 0.9 * unit),
        fill, "fill-opacity": 0.88, stroke: "#000", "stroke-width": 0.7, "vector-effect": "non-scaling-stroke" }));
    }
  }
  if (reference) {
    const [x, y] = [reference[0] * W, reference[1] * H], arm = 5 * unit, path = `M${x - arm} ${y - arm}L${x + arm} ${y + arm}M${x - arm} ${y + arm}L${x + arm} ${y - arm}`;
    for (const [stroke, width] of [["#000", 4], ["#fff", 2]]) shapes.push(element("path", { d: path, stroke, "stroke-width": width, "vector-effect": "non-scaling-stroke", fill: "none" }));
  }
  const apart = reference && reference.length === 4 ? 2.5 : 0;  // in a box the levels have the same initial points: rings around rings
  if (state.initial && of.initial && reference) for (const key of keys) {
    const [dx, dy] = of.initial[key.head][key.level][key.key % of.points], [h, w] = of.levels[key.level];
    const scale = reference.length === 4 ? [reference[2] / (2 * of.points), reference[3] / (2 * of.points)] : [1 / w, 1 / h];
    const start = [reference[0] + dx * scale[0], reference[1] + dy * scale[1]];
    if (state.head !== null) shapes.push(line(start, [key.x, key.y], { stroke: color(key.level), opacity: 0.7, "stroke-dasharray": "3 3" }));
    for (const [stroke, width] of [["#000", 4], [color(key.level), 2]]) shapes.push(element("circle", { class: "initial", cx: start[0] * W, cy: start[1] * H,
      r: (4.5 + apart * (of.levels.length - 1 - key.level)) * unit, fill: "none", stroke, "stroke-width": width, "vector-effect": "non-scaling-stroke" }));
  }
  view.replaceChildren(...shapes);
  drawn = keys;
  const heads = state.head !== null ? `head ${state.head}` : of.heads === 1 ? "" : of.kind === POINTS || of.kind === GRID ? "all heads" : "mean over heads";
  $("caption").textContent = [of.name, of.title, describe(of), heads].filter(Boolean).join(" · ");
  renderControls(of, arrays, slot);
  renderLegend(of, reference, isMap);
  renderTable(of, keys);
  const place = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== null && value !== false));
  try { history.replaceState(null, "", `#${place}`); } catch { /* a page without an address */ }
};

const button = (text, pressed, choose) => {
  const made = element("button", { type: "button", "aria-pressed": String(pressed) }, text);
  made.addEventListener("click", () => { choose(); void render(); });
  return made;
};
const fill = (id, selector, shown, children) => { $(id).hidden = !shown; if (shown) refill($(id).querySelector(selector), children); };
const refill = (parent, children) => {  // keeps the focus on the button at the same place
  const focused = [...parent.querySelectorAll("button")].indexOf(document.activeElement), top = parent.scrollTop;
  parent.replaceChildren(...children);
  parent.scrollTop = top;
  if (focused >= 0) parent.querySelectorAll("button")[focused]?.focus({ preventScroll: true });
};
const renderControls = (of, arrays, slot) => {
  const image = picture();
  fill("pictures", ".thumbs", data.pictures.length > 1, data.pictures.map((name, index) => {
    const thumb = button(element("img", { src: data.models[0].pictures[index].source, alt: name }), index === state.picture, () => go({ picture: index }));
    thumb.title = name;
    return thumb;
  }));
  fill("models", ".choices", data.models.length > 1, data.models.map(({ name }, index) => button(name, index === state.model, () => go({ model: index }))));
  const slots = Map.groupBy ? Map.groupBy(image.layers, (each) => each.name.slice(0, each.name.lastIndexOf("."))) : image.layers.reduce((map, each) => {
    const key = each.name.slice(0, each.name.lastIndexOf("."));
    return map.set(key, [...(map.get(key) ?? []), each]);
  }, new Map());
  fill("layers", "div", true, [...slots].map(([name, own]) => element("div", { class: "slot" }, element("span", {}, name),
    element("div", { class: "choices" }, ...own.map((each) => {
      const made = button(each.name.slice(name.length + 1), each.name === state.layer, () => go({ layer: each.name }));
      made.setAttribute("aria-label", each.name);
      return made;
    })))));
  fill("tokens", ".choices", of.onGrid && of.queryLevels.length > 1, (of.queryLevels ?? []).map(([h, w], level) => button(`${level}: ${w} × ${h}`, level === state.level, () => {
    const { x, y } = tokenOf(of, state.query);
    Object.assign(state, { level, query: tokenAt(of, level, x, y) });
  })));
  $("limit").textContent = Number($("threshold").value).toFixed(2);
  fill("queries", ".choices", !of.onGrid, of.onGrid ? [] : byScore().filter((query) => isVisible(query) || query === state.query).map((query) =>
    button(`${image.labels[query]} ${image.scores[query].toFixed(2)}`, query === state.query, () => { state.query = query; })));
  const rows = [null, ...Array(of.heads).keys()].slice(of.heads === 1 ? 1 : 0);
  const stacked = of.levels.length > 1 && !(of.kind === WINDOW && of.onGrid);
  fill("heads", ".bars", true, rows.map((head) => {
    const heads = head === null ? [...Array(of.heads).keys()] : [head], keys = keysOf(of, arrays, slot, heads);
    const total = keys.reduce((sum, { weight }) => sum + weight, 0) || 1;
    const spread = Math.exp(-keys.reduce((sum, { weight }) => sum + (weight > 0 ? (weight / total) * Math.log(weight / total) : 0), 0));
    const parts = stacked ? of.levels.map((_, level) => [keys.reduce((sum, key) => sum + (key.level === level ? key.weight : 0), 0) / total, color(level)]) : [[spread / keys.length, "var(--s6)"]];
    const bar = element("i", {}, ...parts.map(([share, tint]) => element("b", { style: `width: ${100 * share}%; background: ${tint}` })));
    const made = button(head === null ? "all" : `head ${head}`, head === state.head || of.heads === 1, () => { state.head = of.heads === 1 ? null : head; });
    made.append(bar, element("em", {}, `${spread < 10 ? spread.toFixed(1) : Math.round(spread)} of ${keys.length}`));
    return made;
  }));
  const noun = of.kind === POINTS ? "points" : "keys";
  $("spread").textContent = `${stacked ? "Bar: weight by level. " : ""}Number: how many of the ${noun} the weights are spread over (exponential of their entropy).`
    + (of.kept === null ? "" : ` ${of.kept.length} of ${of.queries} queries are in this page.`);
  for (const [id, possible] of [["initial", of.initial !== null], ["bias", of.bias !== null], ["zoom", true]]) {
    $(id).closest("label").hidden = !possible;
    $(id).checked = state[id];
  }
};
const renderLegend = (of, reference, isMap) => {
  const dot = (tint, stroke = "#000") => element("svg", { width: 10, height: 10 }, element("circle", { cx: 5, cy: 5, r: 4.2, fill: tint, stroke, "stroke-width": stroke === "#000" ? 0.8 : 1.6 }));
  const ramp = (colors) => element("i", { class: "ramp", style: `background: linear-gradient(90deg, ${colors})` });
  const dash = (stroke, dashes = "none") => element("svg", { width: 16, height: 10 }, element("line", { x1: 0, y1: 5, x2: 16, y2: 5, stroke, "stroke-width": 2, "stroke-dasharray": dashes }));
  const entries = [], colours = state.bias && of.bias !== null;
  const noun = of.kind === GRID && of.levels.length === 1 ? "group" : "level", count = noun === "group" ? of.groups : of.levels.length;
  if (!isMap && count > 1) for (let index = 0; index < count; index++) entries.push([colours ? dash(color(index)) : dot(color(index)), `${noun} ${index}`]);
  entries.push(isMap ? [ramp(MAP), "attention: none … most"] : [dot("none", "var(--ink)"), "area: weight"]);
  if (colours) entries.push([ramp(BIAS), `position bias: −${of.maxBias.toPrecision(2)} … ${of.maxBias.toPrecision(2)}`]);
  if (of.kind === GRID && of.grids) entries.push([dash("var(--muted)"), "grid without offsets"]);
  if (state.initial && of.initial) entries.push([dot("none", COLORS[0]), "initial offsets"]);
  if (reference) entries.push(["✕", of.onGrid ? "query" : reference.length === 4 ? "reference box" : "reference point"]);
  if (!of.onGrid) entries.push([dash(BOX), "predicted box"]);
  $("legend").replaceChildren(...entries.map(([mark, text]) => element("span", {}, element("i", {}, mark), text)));
};
const renderTable = (of, keys) => {
  const image = picture(), levels = of.levels.length > 1, heads = keys.some(({ head }) => head !== null);
  const names = [...(levels ? ["level"] : []), ...(heads ? ["head"] : []), "weight", "x", "y", ...(of.bias ? ["bias"] : [])];
  $("weights").querySelector("thead").replaceChildren(element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));
  $("weights").querySelector("tbody").replaceChildren(...[...keys].sort((a, b) => b.weight - a.weight).slice(0, ROWS).map((key) => {
    const mark = element("span", { class: "dot", style: `background: ${color(key.tint)}` });
    const cells = [...(levels ? [[mark, String(key.level)]] : []), ...(heads ? [[String(key.head ?? "")]] : []), [key.weight.toFixed(3)],
      [(key.x * image.width).toFixed(0)], [(key.y * image.height).toFixed(0)], ...(of.bias ? [[key.bias.toFixed(2)]] : [])];
    return element("tr", {}, ...cells.map((cell) => element("td", {}, ...cell)));
  }));
};

// Change the picture, model or layer, and keep the place.
const go = (change) => {
  const before = layer(), place = before && (before.onGrid ? tokenOf(before, state.query) : null), old = picture();
  const box = before && !before.onGrid ? boxOf(state.query) : null;
  Object.assign(state, change);
  const image = picture();
  if (!layer()) state.layer = image.layers[image.layers.length - 1].name;
  const of = layer();
  if (state.head !== null && state.head >= of.heads) state.head = null;
  if ("picture" in change) {
    const known = image.boxes.length ? byScore()[0] : 0;
    state.query = of.onGrid ? tokenAt(of, (state.level = Math.min(state.level, of.queryLevels.length - 1)), 0.5, 0.5) : known;
    setThreshold();
  } else if (of.onGrid) {
    const [x, y] = place ? [place.x, place.y] : box ? [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] : [0.5, 0.5];
    state.level = Math.min(state.level, of.queryLevels.length - 1);
    state.query = tokenAt(of, state.level, x, y);
  } else if (box && image !== old && !(image.sameQueries && old.sameQueries)) {
    state.query = byScore().reduce((best, query) => (overlap(boxOf(query), box) > overlap(boxOf(best), box) ? query : best));
  } else if (place) state.query = queryAt(place.x, place.y);
  const guesses = image.guesses.map(([name, score]) => `${name} ${score.toFixed(2)}`).join(", ");
  $("hint").textContent = `Click ${image.boxes.length ? "a box or a pixel" : "a pixel"} to see what it attends to.${guesses ? ` Predicted: ${guesses}.` : ""}`;
};
const setThreshold = () => {
  const scores = [...picture().scores].sort((a, b) => b - a);
  $("threshold").value = Math.min(0.3, Math.floor(100 * (scores[2] ?? scores[0] ?? 0)) / 100);
};
const placeOf = (event) => {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform($("view").getScreenCTM().inverse());
  return [point.x / picture().width, point.y / picture().height];
};
$("view").addEventListener("click", (event) => {
  const [x, y] = placeOf(event), of = layer();
  state.query = of.onGrid ? tokenAt(of, state.level, x, y) : queryAt(x, y);
  void render();
});
$("view").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key], of = layer();
  if (!step) return;
  event.preventDefault();
  if (of.onGrid) {
    const { level, x, y } = tokenOf(of, state.query), [height, width] = of.queryLevels[level], stride = of.tokens[level].step;
    state.query = tokenAt(of, level, x + (step[0] * stride) / width, y + (step[1] * stride) / height);
  } else {
    const order = byScore().filter((query) => of.kept === null || of.kept.includes(query));
    state.query = order[Math.min(Math.max(order.indexOf(state.query) + step[0] + step[1], 0), order.length - 1)];
  }
  void render();
});
$("view").addEventListener("pointermove", (event) => {
  const tip = $("tip"), [x, y] = placeOf(event), { width: W, height: H } = picture(), unit = 1 / $("view").getScreenCTM().a, of = layer();
  let text = "";
  if (event.pointerType !== "touch" && density && of.kind !== WINDOW) {
    const value = density.values[Math.floor(y * density.height) * density.width + Math.floor(x * density.width)];
    text = value === undefined ? "" : `${value.toFixed(2)} × even attention`;
  } else if (event.pointerType !== "touch") {
    const distance = (key) => Math.hypot((key.x - x) * W, (key.y - y) * H) / unit;
    const nearest = drawn.reduce((best, key) => (!best || distance(key) < distance(best) ? key : best), null);
    if (nearest && distance(nearest) < (density ? 40 : 14)) text = [of.levels.length > 1 ? `level ${nearest.level}` : "", nearest.head === null ? "" : `head ${nearest.head}`,
      `weight ${nearest.weight.toFixed(3)}`, nearest.bias === null ? "" : `bias ${nearest.bias.toFixed(2)}`].filter(Boolean).join("\n");
  }
  tip.hidden = !text;
  tip.textContent = text;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 140)}px`;
  tip.style.top = `${event.clientY + 14}px`;
});
$("view").addEventListener("pointerleave", () => { $("tip").hidden = true; });
for (const id of ["zoom", "initial", "bias"]) $(id).addEventListener("change", () => { state[id] = $(id).checked; void render(); });
$("threshold").addEventListener("input", () => void render());
$("controls").addEventListener("submit", (event) => event.preventDefault());
addEventListener("resize", () => void render());

const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1))), read = { ...data.start };
for (const [key, value] of Object.entries(given)) if (key in state) read[key] = key === "layer" ? value : value === "true" ? true : Number(value);
const { query, ...rest } = read;
try { go({ picture: 0, ...rest }); } catch {  // a place that is not in this page
  Object.assign(state, { model: 0, picture: 0, layer: "", head: null, level: 0 });
  go({ picture: 0 });
}
const first = layer();
if (Number.isInteger(query) && query >= 0 && query < first.queries) state.query = query;
if (first.onGrid) state.level = tokenOf(first, state.query).level;
void render();
