// A runbook as elements: headings, paragraphs, lists, code and tables. What is not recognized is shown as text.

import { element } from "./dom.js";

const anchor = (text) => text.toLowerCase().replace(/[^\w -]/g, "").replaceAll(" ", "-");

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)]+\))/).map((part) => {
    if (part.startsWith("`") && part.length > 2) return element("code", {}, part.slice(1, -1));
    if (part.startsWith("**") && part.length > 4) return element("b", {}, part.slice(2, -2));
    const link = part.match(/^\[([^\]]+)\]\(([\w-]+\.md)?(?:#([\w-]+))?\)$/);
    if (link?.[2]) return element("a", { href: `#/runbooks/${encodeURIComponent(link[2])}${link[3] ? `/${link[3]}` : ""}` }, link[1]);
    const other = part.match(/^\[([^\]]+)\]\(/);
    return other ? other[1] : part;
  });
}

export function runbook(text) {
  const parts = [];
  const lines = text.split("\n");
  let n = 0;
  const take = (test) => {
    const taken = [];
    while (n < lines.length && test(lines[n])) taken.push(lines[n++]);
    return taken;
  };
  while (n < lines.length) {
    const line = lines[n];
    const heading = line.match(/^(#{1,4}) (.*)$/);
    if (heading) {
      n += 1;
      parts.push(element(`h${Math.min(4, heading[1].length + 1)}`, { id: `section-${anchor(heading[2])}`, tabindex: "-1" }, ...inline(heading[2])));
    } else if (line.startsWith("```")) {
      n += 1;
      parts.push(element("pre", { tabindex: "0" }, take((one) => !one.startsWith("```")).join("\n")));
      n += 1;
    } else if (/^\|/.test(line)) {
      const rows = take((one) => /^\|/.test(one)).filter((one) => !/^[|\s:-]+$/.test(one)).map((one) => one.replace(/^\||\|\s*$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim()));
      parts.push(element("div", { class: "scroll" }, element("table", { class: "plain" }, element("thead", {}, element("tr", {}, ...rows[0].map((cell) => element("th", { scope: "col" }, ...inline(cell))))), element("tbody", {}, ...rows.slice(1).map((row) => element("tr", {}, ...row.map((cell, c) => element("td", { "data-label": rows[0][c] }, ...inline(cell)))))))));
    } else if (/^\s*([-*]|\d+\.) /.test(line)) {
      const ordered = /^\s*\d/.test(line);
      const items = [];
      for (const one of take((each) => /^\s*([-*]|\d+\.) /.test(each) || /^\s+\S/.test(each))) {
        const start = one.match(/^\s*(?:[-*]|\d+\.) (.*)$/);
        if (start) items.push(start[1]);
        else items[items.length - 1] += ` ${one.trim()}`;
      }
      parts.push(element(ordered ? "ol" : "ul", { class: "list" }, ...items.map((item) => element("li", {}, ...inline(item)))));
    } else if (line.trim()) {
      parts.push(element("p", {}, ...inline(take((one) => one.trim() && !/^(#{1,4} |```|\||\s*([-*]|\d+\.) )/.test(one)).join(" "))));
    } else n += 1;
  }
  return parts;
}
