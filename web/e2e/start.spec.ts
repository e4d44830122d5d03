import { execFileSync } from "node:child_process";
import { copied, expect, expectAccessible, setup, shot, signIn, test } from "./fixture.ts";

test("an empty server shows the first event, which turns into its chart", async ({ page }) => {
  const { keyed, keys } = setup();
  await page.goto(keyed);
  await expectAccessible(page);
  await shot(page, "sign-in");
  await signIn(page, keys.rival);
  await expect(page).toHaveURL(/#\/start/);
  await expect(page.getByText("Waiting for an event")).toBeVisible();
  await expectAccessible(page);
  await shot(page, "start-waiting");
  const command = await copied(page, "Copy");
  expect(command).not.toContain(keys.rival);
  execFileSync("bash", ["-c", `${command.trimEnd()} -sf`], { env: { ...process.env, ROLLMILL_KEY: keys.rival } });
  await expect(page.getByText("it has arrived")).toBeVisible();
  await page.getByRole("button", { name: "Send one from here" }).click();
  await expect(page.getByRole("row", { name: /^\/home / })).toContainText("2");
  await shot(page, "start-arrived");
  await page.getByRole("link", { name: "Explore it" }).click();
  await expect(page.getByRole("slider")).toBeVisible();
});
