// What a query attends to, from the arrays of the page. Coordinates are those of the picture in [0, 1].
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const COLORS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2"];
const MAP = ["#440154", "#472D7B", "#3B528B", "#2C728E", "#21918C", "#28AE80", "#5EC962", "#ADDC30", "#FDE725"];
const BIAS = ["#7F3B08", "#E08214", "#FDD49E", "#F7F7F7", "#D8DAEB", "#8073AC", "#2D004B"];
const [POINTS, GRID, WINDOW] = ["sampling_points", "deformed_grid", "windows"];
const BOX = COLORS[4], ROWS = 12;
const state = { model: 0, picture: 0, layer: "", query: 0, head: null, level: 0, zoom: false, initial: false, bias: false };
let drawn = [];  // keys with their places on the picture, for the tooltip
let density = null;
let rendering = 0;

const picture = () => data.models[state.model].pictures[state.picture];
const layer = () => picture().layers.find((each) => each.name === state.layer);
const color = (index) => COLORS[index % COLORS.length];
const rgb = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
const mix = (colors, value) => {
  const place = Math.min(Math.max(value, 0), 1) * (colors.length - 1);
  const low = Math.min(Math.floor(place), colors.length - 2), part = place - low, [a, b] = [rgb(colors[low]), rgb(colors[low + 1])];
  return a.map((channel, index) => Math.round(channel + (b[index] - channel) * part));
};
const element = (name, attributes = {}, ...children) => {
  const made = ["svg", "g", "rect", "line", "circle", "path", "image"].includes(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// Arrays of a layer, decoded when it is first shown.
const inflate = async (text) => {
  if (text === null) return null;
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint16Array(await new Response(stream).arrayBuffer());
};
const decode = (of) => (of.decoded ??= Promise.all([of.weights, of.locations, of.bias].map(inflate)).then(([w, l, b]) => ({
  slots: of.kept === null ? null : new Map(of.kept.map((query, slot) => [query, slot])),
  weight: (slot, head, key) => (w[(slot * of.heads + head) * of.keys + key] / 65535) * of.maxWeight,
  bias: b && ((slot, head, key) => (b[(slot * of.heads + head) * of.keys + key] / 65535 - 0.5) * 2 * of.maxBias),
  location: l && ((index) => [l[2 * index], l[2 * index + 1]].map((value) => (value / 65535) * 3 - 1)),
})));

// Tokens: queries that are pixels of the levels.
const tokenIn = (levels, index) => {
  let level = 0, start = 0;
  while (index >= start + levels[level][0] * levels[level][1]) start += levels[level][0] * levels[level++][1];
  const [height, width] = levels[level], row = Math.floor((index - start) / width), column = (index - start) % width;
  return { level, row, column, x: (column + 0.5) / width, y: (row + 0.5) / height };
};
const tokenOf = (of, query) => tokenIn(of.queryLevels, query);
const tokenAt = (of, level, x, y) => {
  const [height, width] = of.queryLevels[level], { row, column, step, rows, columns } = of.tokens[level];
  const snap = (place, side, first, count) =>
    first + step * Math.min(Math.max(Math.round((Math.floor(place * side) - first) / step), 0), count - 1);
  const start = of.queryLevels.slice(0, level).reduce((sum, [h, w]) => sum + h * w, 0);
  return start + snap(y, height, row, rows) * width + snap(x, width, column, columns);
};
const referenceOf = (of, query) => {
  if (!of.onGrid) return of.references === null ? null : of.references[query];
  const { x, y } = tokenOf(of, query);
  return [x, y];
};
const headsShown = (of) => (state.head === null ? [...Array(of.heads).keys()] : [state.head]);
const levelOfKey = (of, key) => {
  if (of.kind === POINTS) return Math.floor(key / of.points);
  if (of.kind === WINDOW) return of.onGrid ? tokenOf(of, state.query).level : Math.floor((key * of.levels.length) / of.keys);
  const sizes = (of.grids ?? of.levels).map((item) => (of.grids ? item.length * item[0].length : item[0] * item[1]));
  let level = 0, start = 0;
  while (level < sizes.length - 1 && key >= start + sizes[level]) start += sizes[level++];
  return level;
};

// Everything that the query attends to: { x, y, weight, level, head, group, key, bias }.
const keysOf = (of, arrays, slot, heads) => {
  const keys = [], each = of.kind === POINTS ? heads.map((head) => [head]) : of.kind === GRID
    ? [...Array(of.groups).keys()].map((group) => heads.filter((head) => Math.floor((head * of.groups) / of.heads) === group))
    : [heads];
  each.forEach((members, group) => {
    if (!members.length) return;
    for (let key = 0; key < of.keys; key++) {
      const mean = (read) => members.reduce((sum, head) => sum + read(slot, head, key), 0) / members.length;
      const level = levelOfKey(of, key);
      let place;
      if (of.kind === POINTS) place = arrays.location((slot * of.heads + members[0]) * of.keys + key);
      else if (of.kind === GRID) place = arrays.location(key * of.groups + group);
      else if (of.kind === WINDOW) place = arrays.location(slot * of.keys + key);
      else { const token = tokenIn(of.levels, key); place = [token.x, token.y]; }
      keys.push({
        x: place[0], y: place[1], weight: mean(arrays.weight), bias: arrays.bias ? mean(arrays.bias) : null, level, key, group,
        head: members.length === 1 ? members[0] : null, tint: of.kind === GRID && of.levels.length === 1 ? group : level,
      });
    }
  });
  return keys;
};

// Attention per area on the finest map, 1 where it is even; NaN where a window does not reach.
const densityOf = (of, keys) => {
  const levels = [...new Set(keys.map((key) => key.level))];
  const [height, width] = levels.map((level) => of.levels[level]).sort((a, b) => b[0] * b[1] - a[0] * a[1])[0];
  const values = new Float32Array(height * width).fill(of.kind === WINDOW ? NaN : 0);
  const cells = levels.map((level) => new Map());
  for (const { x, y, weight, level } of keys) {
    if (of.kind === WINDOW && weight <= 0) continue;
    const [h, w] = of.levels[level];
    cells[levels.indexOf(level)].set(Math.floor(y * h) * w + Math.floor(x * w), weight * h * w);
  }
  for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) levels.forEach((level, index) => {
    const [h, w] = of.levels[level];
    const value = cells[index].get(Math.floor((row * h) / height) * w + Math.floor((column * w) / width));
    if (value !== undefined) values[row * width + column] = (values[row * width + column] || 0) + value;
  });
  return { values, height, width };
};
const heatmap = ({ values, height, width }, w, h) => {
  const canvas = element("canvas", { width, height }), context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const highest = values.reduce((most, value) => (value > most ? value : most), 1e-12);
  values.forEach((value, index) => { if (!Number.isNaN(value)) image.data.set([...mix(MAP, value / highest), 166], 4 * index); });
  context.putImageData(image, 0, 0);
  return element("image", { href: canvas.toDataURL(), width: w, height: h, preserveAspectRatio: "none", style: "image-rendering: pixelated" });
};
