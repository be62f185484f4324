// A schematic map of which district lies beside which, not to scale. Each district gets the area that is nearer to it
// than to any other (a Voronoi diagram). The areas are evened out, so that even small ones have room for their labels.

const WIDTH = 100;
const HEIGHT = 78;
const EVENING_STEPS = 8;
const SVG = "http://www.w3.org/2000/svg";

function project(positions) {
  const meanLatitude = positions.reduce((sum, [, latitude]) => sum + latitude, 0) / positions.length;
  const shrink = Math.cos((meanLatitude * Math.PI) / 180);
  const points = positions.map(([longitude, latitude]) => [longitude * shrink, -latitude]);
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const fit = (value, values, size) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return high === low ? size / 2 : size * (0.12 + (0.76 * (value - low)) / (high - low));
  };
  return points.map(([x, y]) => [fit(x, xs, WIDTH), fit(y, ys, HEIGHT)]);
}

// The part of a polygon that is nearer to `point` than to `other`.
function nearer(polygon, point, other) {
  const [dx, dy] = [other[0] - point[0], other[1] - point[1]];
  const limit = (other[0] ** 2 + other[1] ** 2 - point[0] ** 2 - point[1] ** 2) / 2;
  const side = ([x, y]) => x * dx + y * dy - limit;
  return polygon.flatMap((corner, n) => {
    const next = polygon[(n + 1) % polygon.length];
    const [a, b] = [side(corner), side(next)];
    const kept = a <= 0 ? [corner] : [];
    if (a * b < 0) {
      const part = a / (a - b);
      kept.push([corner[0] + part * (next[0] - corner[0]), corner[1] + part * (next[1] - corner[1])]);
    }
    return kept;
  });
}

function areas(points) {
  const wholeMap = [[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]];
  return points.map((point) => points.filter((other) => other !== point).reduce((area, other) => nearer(area, point, other), wholeMap));
}

function centre(polygon) {
  let [area, x, y] = [0, 0, 0];
  polygon.forEach(([ax, ay], n) => {
    const [bx, by] = polygon[(n + 1) % polygon.length];
    const cross = ax * by - bx * ay;
    area += cross;
    x += (ax + bx) * cross;
    y += (ay + by) * cross;
  });
  return [x / (3 * area), y / (3 * area)];
}

// The polygon with its corners moved by `gap` towards its centre, which leaves a gap between neighbours.
function inset(polygon, gap) {
  const [cx, cy] = centre(polygon);
  return polygon.map(([x, y]) => {
    const distance = Math.hypot(x - cx, y - cy);
    return [x + ((cx - x) * gap) / distance, y + ((cy - y) * gap) / distance];
  });
}

function shape(name, attributes, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function layOut(svg, tiles) {
  let points = project(tiles.map((tile) => tile.position));
  for (let step = 0; step < EVENING_STEPS; step += 1) points = areas(points).map(centre);
  svg.replaceChildren(
    ...areas(points).map((area, n) => {
      const [x, y] = centre(area);
      const link = shape(
        "a",
        { href: `#tile-${tiles[n].id}`, "data-tile": tiles[n].id },
        shape("polygon", { points: inset(area, 1.6).map((corner) => corner.map((c) => c.toFixed(2)).join(",")).join(" ") }),
        shape("use", { x: x - 2.2, y: y - 7.6, width: 4.4, height: 4.4 }),
        shape("text", { x, y: y + 1.2, class: "place" }, tiles[n].name),
        shape("text", { x, y: y + 6, class: "number" }),
      );
      link.addEventListener("click", (event) => {
        event.preventDefault();
        const tile = document.getElementById(`tile-${tiles[n].id}`);
        tile.scrollIntoView({ block: "nearest" });
        tile.focus();
      });
      return link;
    }),
  );
}

// describe(tile) -> {severity, number, label}
export function drawMap(svg, tiles, describe) {
  const placed = tiles.filter((tile) => tile.position);
  const layout = JSON.stringify(placed.map((tile) => [tile.id, tile.name, tile.position]));
  if (svg.dataset.layout !== layout) {
    svg.dataset.layout = layout;
    layOut(svg, placed);
  }
  for (const tile of placed) {
    const link = svg.querySelector(`[data-tile="${CSS.escape(tile.id)}"]`);
    const { severity, number, label } = describe(tile);
    link.dataset.severity = severity;
    link.setAttribute("aria-label", label);
    link.querySelector("use").setAttribute("href", `#sign-${severity}`);
    link.querySelector(".number").textContent = number ? `${number} open` : "";
  }
}
