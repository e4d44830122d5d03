import { readFileSync } from "node:fs";
import { expect, expectAccessible, setup, shot, signIn, test } from "./fixture.ts";

const WEEK = "from=2013-01-08T00:00:00Z&to=2013-01-15T00:00:00Z";

test("a board is filled, edited, kept from overwriting, exported, deleted, imported", async ({ page, allowed }) => {
  allowed.push(/status of 412/);
  const { open } = setup();
  const name = "<script>document.title='x'</script> Flights";
  await page.goto(`${open}/#/explore?metric=departure_delay&${WEEK}&by=origin&step=1d`);
  await page.getByRole("button", { name: "Add to a board" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Name of the board").fill(name);
  await expect(dialog.getByLabel("Title of the panel")).toHaveValue("count of departure_delay by origin");
  await expectAccessible(page);
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await dialog.getByRole("button", { name: "Close" }).click();
  // Another one on the same board.
  await page.goto(`${open}/#/explore?metric=departure_delay&${WEEK}&agg=p95&step=1d&compare=1`);
  await page.getByRole("button", { name: "Add to a board" }).click();
  await dialog.getByLabel("Board", { exact: true }).selectOption({ label: name });
  await dialog.getByLabel("Title of the panel").fill("Late ones");
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await dialog.getByRole("link", { name: "Open the board" }).click();

  await expect(page.getByRole("heading", { name, level: 1 })).toBeVisible();
  await expect(page.getByRole("slider")).toHaveCount(2);
  await expect(page).toHaveTitle("Boards – Rollmill");
  await expectAccessible(page);
  await shot(page, "board");
  await page.getByRole("button", { name: "Edit" }).click();
  await page.getByRole("button", { name: "Move Late ones forward" }).click();
  await page.getByRole("region", { name: "Late ones" }).getByLabel("Columns of 12").selectOption("12");
  await page.getByRole("button", { name: "Save" }).click();
  await expect(page.getByRole("button", { name: "Edit" })).toBeVisible();
  await expect(page.getByRole("heading", { level: 2 }).first()).toHaveText("Late ones");

  // Somebody else changes it in between.
  const id = page.url().split("/").at(-1) ?? "";
  const theirs = await fetch(`${open}/v1/boards/${id}`);
  const board = (await theirs.json()) as { name: string; panels: unknown[] };
  await page.getByRole("button", { name: "Edit" }).click();
  await page.getByLabel("Name").fill("Mine");
  const changed = await fetch(`${open}/v1/boards/${id}`, {
    method: "PUT",
    headers: { "content-type": "application/json", "if-match": theirs.headers.get("etag") ?? "" },
    body: JSON.stringify({ ...board, name: "Theirs" }),
  });
  expect(changed.ok).toBe(true);
  await page.getByRole("button", { name: "Save" }).click();
  await expect(page.getByText("Somebody else has changed this board")).toBeVisible();
  await page.getByRole("button", { name: "Show theirs" }).click();
  await expect(page.getByRole("heading", { name: "Theirs", level: 1 })).toBeVisible();

  const exported = page.waitForEvent("download");
  await page.getByRole("button", { name: "Export" }).click();
  const file = readFileSync(await (await exported).path());
  await page.getByRole("button", { name: "Delete" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await expect(page.getByText("No boards yet")).toBeVisible();
  await page.getByLabel("Or from a file").setInputFiles({ name: "x.json", mimeType: "application/json", buffer: Buffer.from("{}") });
  await expect(page.getByText("The file is no exported board")).toBeVisible();
  await page.getByLabel("Or from a file").setInputFiles({ name: "x.json", mimeType: "application/json", buffer: file });
  await expect(page.getByRole("heading", { name: "Theirs", level: 1 })).toBeVisible();
  await expect(page.getByRole("slider")).toHaveCount(2);
});

test("boards are of one tenant, and a key that only reads changes none", async ({ page, allowed }) => {
  allowed.push(/status of 40[34]/);
  const { keyed, keys } = setup();
  await page.goto(`${keyed}/#/boards`);
  await signIn(page, keys.all);
  await page.getByLabel("New board").fill("Of the shop");
  await page.getByRole("button", { name: "Create" }).click();
  await expect(page.getByText("This board is empty")).toBeVisible();
  await page.getByRole("link", { name: "Sign out" }).click();
  // The address still names that board: to another tenant there is none.
  await signIn(page, keys.third);
  await expect(page.getByRole("alert")).toBeVisible();
  await page.goto(`${keyed}/#/boards`);
  await expect(page.getByText("No boards yet")).toBeVisible();
  await page.getByRole("link", { name: "Sign out" }).click();
  await signIn(page, keys.reader);
  await page.goto(`${keyed}/#/boards`);
  await page.getByRole("link", { name: "Of the shop" }).click();
  await page.getByRole("button", { name: "Edit" }).click();
  await page.getByLabel("Name").fill("Not mine");
  await page.getByRole("button", { name: "Save" }).click();
  await expect(page.getByRole("alert")).toContainText("may not do that");
});
