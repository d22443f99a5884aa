// Look at pages as a reader does: `node docs/check_pages.mjs FOLDER [SCREENSHOTS]` (see `make pages`).
// Each page is opened in Chromium 400 and 1400 pixels wide, light and dark. It fails where something scrolls sideways
// or is cut off, where axe-core finds fault (contrast below 4.5 among it), or where a request leaves the page.
import { createRequire } from "node:module";
import { mkdirSync, readdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(join(process.cwd(), ".pages", "package.json"));
const { chromium } = require("playwright-core");
const axe = require.resolve("axe-core/axe.min.js");
const [folder, screenshots] = process.argv.slice(2);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const faults = [];
if (screenshots) mkdirSync(screenshots, { recursive: true });
for (const name of readdirSync(folder).filter((file) => file.endsWith(".html")).sort()) {
  for (const width of [400, 1400]) {
    for (const colorScheme of ["light", "dark"]) {
      // The page's own policy would keep axe out; the check that nothing is asked for is made of requests, not of it.
      const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
      const where = `${name}, ${width} pixels, ${colorScheme}`;
      const address = pathToFileURL(resolve(folder, name)).href;
      page.on("request", (request) => request.url() === address || faults.push(`${where}: asks for ${request.url()}`));
      await page.goto(address);
      if (screenshots) {
        const path = join(screenshots, `${name.replace(".html", "")}-${width}-${colorScheme}.png`);
        await page.screenshot({ path, fullPage: true });
      }
      await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = true)));
      const outside = await page.evaluate(() => {
        const visible = [...document.body.querySelectorAll("*")].filter((element) => element.getClientRects().length);
        const edge = document.documentElement.clientWidth;
        return [
          ...(document.documentElement.scrollWidth > edge ? [`scrolls sideways by ${document.documentElement.scrollWidth - edge}`] : []),
          ...visible.filter((element) => element.getBoundingClientRect().right > edge + 1).slice(0, 3)
            .map((element) => `cut off: <${element.tagName.toLowerCase()}> ${element.textContent.trim().slice(0, 40)}`),
          ...visible.filter((element) => getComputedStyle(element).overflowX !== "visible" && element.scrollWidth > element.clientWidth + 1 && element.tagName !== "HTML")
            .slice(0, 3).map((element) => `scrolls inside: <${element.tagName.toLowerCase()}>`),
        ];
      });
      faults.push(...outside.map((fault) => `${where}: ${fault}`));
      await page.addScriptTag({ path: axe });
      const { violations, passes } = await page.evaluate(() => window.axe.run());
      faults.push(...violations.map((fault) => `${where}: ${fault.id}: ${fault.nodes[0].html.slice(0, 120)} (${fault.nodes[0].failureSummary.replace(/\s+/g, " ").slice(0, 200)})`));
      if (!passes.some((rule) => rule.id === "color-contrast")) faults.push(`${where}: no contrast was measured`);
      console.log(`${where}: ${passes.length} rules of axe-core pass, ${violations.length} fail`);
      await page.close();
    }
  }
}
await browser.close();
console.log(faults.join("\n"));
process.exit(faults.length ? 1 : 0);
