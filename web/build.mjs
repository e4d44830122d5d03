// Builds the dashboard into dist/: one script, one stylesheet and an icon, each with a hash in its
// name. `--serve` also watches, and passes what is not the page's on to a server (ROLLMILL_URL).
import { createHash } from "node:crypto";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import * as esbuild from "esbuild";

const OUT = "dist";
// What a browser fetches at the first load, gzipped. More than this is a regression.
const MAX_FIRST_LOAD = 150_000;

const options = {
  entryPoints: { app: "src/main.tsx", style: "src/style/index.css" },
  outdir: `${OUT}/assets`,
  entryNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "chrome110", "firefox115", "safari16"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  metafile: true,
  write: false,
};

async function writePage(result) {
  // The folder itself stays, because the build of the server watches it.
  await rm(`${OUT}/assets`, { recursive: true, force: true });
  await mkdir(`${OUT}/assets`, { recursive: true });
  const names = {};
  for (const file of result.outputFiles) {
    const name = file.path.slice(file.path.lastIndexOf("/") + 1);
    names[name.startsWith("app-") ? "app" : "style"] = name;
    await writeFile(`${OUT}/assets/${name}`, file.contents);
    // Packed here, once and well, so that the server need not.
    await writeFile(`${OUT}/assets/${name}.gz`, gzipSync(file.contents, { level: 9 }));
  }
  const icon = await readFile("src/icon.svg");
  const hash = createHash("sha256").update(icon).digest("hex").slice(0, 8);
  names.icon = `icon-${hash}.svg`;
  await writeFile(`${OUT}/assets/${names.icon}`, icon);
  const template = await readFile("src/index.html", "utf8");
  const page = template.replace(/\{\{(\w+)\}\}/g, (_, name) => `/assets/${names[name]}`);
  await writeFile(`${OUT}/index.html`, page);
  return report([Buffer.from(page), icon, ...result.outputFiles.map((file) => file.contents)]);
}

function report(files) {
  const sum = (sizes) => sizes.reduce((a, b) => a + b, 0);
  const packed = sum(files.map((file) => gzipSync(file).length));
  const whole = sum(files.map((file) => file.length));
  console.log(`dashboard: ${whole} bytes, ${packed} gzipped`);
  return packed;
}

if (process.argv.includes("--serve")) {
  const { serve } = await import("./scripts/dev-server.mjs");
  const plugin = {
    name: "page",
    setup: (build) => build.onEnd((result) => result.errors.length || writePage(result)),
  };
  const context = await esbuild.context({ ...options, minify: false, plugins: [plugin] });
  await context.watch();
  serve(OUT);
} else {
  const packed = await writePage(await esbuild.build(options));
  if (packed > MAX_FIRST_LOAD) {
    console.error(`the first load is ${packed} bytes gzipped, above ${MAX_FIRST_LOAD}`);
    process.exit(1);
  }
}
