"""An analyst: spreadsheets of people, a click-through prediction, questions of her own, an interrupted wait."""

from __future__ import annotations

import csv
import json

from tests.journeys.kit import Person, says
from tests.journeys.pages import check_page

AD = "A phone with a week of battery"
SEXES = ("männlich", "weiblich")
GERMAN = "Name;Alter;Jahreseinkommen;Geschlecht;\r\n" + "".join(
    f"Müller {i};{20 + i % 60};{'' if i % 7 == 0 else f'{30 + i % 50}.500,00'};{SEXES[i % 2]};\r\n" for i in range(60)
)


def journey(person: Person) -> None:
    """On a running server."""
    people = person.folder / "kunden.csv"
    people.write_bytes(GERMAN.encode("cp1252"))
    columns = ("--map", "age=Alter", "--map", "income=Jahreseinkommen", "--map", "gender=Geschlecht")
    with person.step("predicts for a spreadsheet of German Excel, and sees how it was read"):
        told = person.run("ctr", "predict", "--ad", AD, "--profiles", "kunden.csv", *columns, "--out", "out")
        says(told, "cp1252", "60 people", "without income", "the model will see", "SIMULATED", "report.html")
    with person.step("opens the report on a telephone"):
        (report,) = (person.folder / "out").glob("*/report.html")
        check_page(report)
        (figures,) = (person.folder / "out").glob("*/report.json")
        assert json.loads(figures.read_text())["simulated"] is True
    with person.step("names a file that is not there"):
        told = person.run("ctr", "predict", "--ad", AD, "--profiles", "customers.csv", code=2)
        says(told, "customers.csv", "No such")
    with person.step("names no ad"):
        says(person.run("ctr", "predict", code=2), "--ad")
    with person.step("gives a file in which no column is known"):
        (person.folder / "odd.csv").write_text("foo,bar\n1,2\n3,4\n")
        says(person.run("ctr", "predict", "--ad", AD, "--profiles", "odd.csv", code=2), "odd.csv", "--map")
    with person.step("asks a question of her own and gets her columns back"):
        told = person.run("population", "submit", "kunden.csv", "--user", "Would {Name} like tea?",
                          "--labels", "Yes,No", "--job-id", "tea", "--watch")  # fmt: skip
        says(told, "100 %, 60 of 60 rows", "completed", "SIMULATED")
        person.run("population", "results", "tea", "--inputs", "--out", "tea.csv")
        with open(person.folder / "tea.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = [row["Name"] for row in rows]
        assert names == [f"Müller {i}" for i in range(60)], names
        sums = [float(row["p_Yes"] or 0) + float(row["p_No"] or 0) for row in rows]
        assert min(sums) > 0.999, rows[sums.index(min(sums))]
        assert rows[7]["prompt"] == "Would Müller 7 like tea?"
    with person.step("misspells a column"):
        says(person.run("population", "submit", "kunden.csv", "--user", "{Nmae}", code=2), "Nmae", "Name")
    with person.step("stops waiting with Ctrl-C, and is told how to come back"):
        (person.folder / "many.csv").write_text("id,name\n" + "".join(f"{i},Person {i}\n" for i in range(600_000)))
        child = person.start("population", "submit", "many.csv", "--user", "Who is {name}?", "--labels", "Yes,No",
                             "--job-id", "many", "--watch")  # fmt: skip
        child.expect(r"\d+ %, [\d,]+ of 600,000 rows, [\d,.]+ rows/s, \d+ (s|min) left")
        says(person.interrupt(child, 130), "job many goes on", "population watch many", "population cancel many")
        says(person.run("population", "cancel", "many"), "cancelled")
        status = json.loads(person.run("population", "status", "many", "--json"))
        assert (status["state"], status["eta_s"]) == ("cancelled", None)
        assert 0 < status["ok"] < 600_000
    with person.step("resumes a prediction by its id"):
        (report,) = (person.folder / "out").glob("*/report.html")
        says(person.run("ctr", "predict", "--resume", report.parent.name, "--out", "out"), "report.html")
