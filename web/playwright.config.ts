import { defineConfig } from "@playwright/test";

// One worker: the tests share two real servers, and some stop one.
export default defineConfig({
  testDir: "e2e",
  globalSetup: "./e2e/servers.ts",
  workers: 1,
  // Limits for a machine that builds at the same time; a test waits for what it wants to see.
  timeout: 300_000,
  expect: { timeout: 90_000 },
  reporter: [["list"]],
  use: {
    launchOptions: {
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: ["--no-sandbox"],
    },
    viewport: { width: 1360, height: 900 },
    permissions: ["clipboard-read", "clipboard-write"],
    trace: "off",
  },
});
