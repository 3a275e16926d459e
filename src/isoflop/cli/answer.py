"""The answer of a study in the terminal, predicted against measured. Needs no PyTorch."""

from collections.abc import Mapping, Sequence
from typing import Any

from isoflop.cli.output import duration, power, print_table
from isoflop.report.law import (
    MOST_WARNINGS,
    accuracy_sentence,
    answer_warnings,
    expected_accuracy,
    with_recipe,
)
from isoflop.report.rows import families as family_order
from isoflop.report.rows import metric_of
from isoflop.report.savings import HOURS_HEADS, hours_rows, limit_sentence
from isoflop.report.text import between, percent


def tell_answer(document: Mapping[str, Any]) -> None:
    """Print an `answer.json`: every family at the target budget, and the recommended run."""
    families = {
        name: document["families"][name] for name in family_order((), dict(document)) if name in document["families"]
    }
    print(f"At {power(document['target_flops'])} training FLOPs:")
    rows = [
        (
            name,
            family["model"],
            power(family["parameters"]),
            power(family["flops_per_image"]),
            f"{family['images']:,}",
            power(family["learning_rate"]),
            f"{family['predicted_loss']:.3f}",
            between(family["interval"]),
            "–" if (accuracy := family.get("predicted_accuracy")) is None else f"{accuracy:.3f}",
            "–" if family["p_best"] is None else f"{family['p_best']:.2f}",
        )
        for name, family in families.items()
    ]
    left_out = document.get("left_out", {})
    rows += [(name, "no law", *(8 * ["–"])) for name in left_out]
    level = next(iter(families.values()))["level"]
    head = (
        "family",
        "model",
        "parameters",
        "training FLOPs/image",
        "images",
        "learning rate",
        "loss",
        f"{level:.0%} interval",
        "accuracy",
        "P(best)" + (" of those that trained" if left_out else ""),
    )
    print_table(head, rows)
    best = families[document["best"]]
    print(
        f"\nThe answer: train {best['model']} on {best['images']:,} images at learning rate "
        f"{power(best['learning_rate'])}{with_recipe(best)}. "
        f"Predicted {metric_of(document).name} {best['predicted_loss']:.3f} "
        f"({level:.0%} interval {between(best['interval'])}){expected_accuracy(best)}; "
        + (
            "no other family could be compared."
            if best["p_best"] is None
            else f"the best family{' of those that trained' if left_out else ''} with probability {best['p_best']:.2f}."
        )
    )
    if "finals" not in document:
        print(*document.get("advice", ()), sep="\n")
    for name, reason in left_out.items():
        print(f"  {name} is not compared: {reason}")
    warnings = answer_warnings(dict(document))
    for warning in warnings[:MOST_WARNINGS]:
        print(f"  {warning}")
    if (others := len(warnings) - MOST_WARNINGS) > 0:
        print(f"  {others} more in the report")


def tell_grades(document: Mapping[str, Any]) -> None:
    """Print predicted and measured loss of each trained answer."""
    for name, grade in document.get("finals", {}).items():
        family = document["families"][name]
        if grade["measured_loss"] is None:
            print(f"{family['model']}: {grade['status']}: {grade['error']}")
            continue
        verdict = "inside" if grade["inside_interval"] else "outside"
        accuracy = grade["measured_accuracy"]  # masked runs have none
        classified = "" if accuracy is None else f"accuracy {accuracy:.3f}, "
        print(
            f"{family['model']}: predicted {grade['predicted_loss']:.3f}, measured {grade['measured_loss']:.3f}, "
            f"{verdict} the {family['level']:.0%} interval {between(family['interval'])} "
            f"({classified}{duration(grade['seconds'])} of training)"
        )
    for told in (*document.get("advice", ()), accuracy_sentence(document)):
        if told:
            print(told)
    spent = document.get("spent")
    if spent and spent.get("utilisation"):
        print(
            f"{power(spent['trained_flops'])} FLOPs in {duration(spent['seconds'])} of run time: "
            f"utilisation {percent(spent['utilisation'])} of the device's peak."
        )
    if spent and spent["saved"] > 0:
        separate = spent["separate_flops"]
        trunks = spent.get("trunk_flops", spent["saved"] * separate)
        print(
            f"{power(spent['trained_flops'])} FLOPs were trained; separate runs would have taken {power(separate)}: "
            f"shared trunks saved {trunks / separate:.0%}."
        )


def tell_hours(document: Mapping[str, Any]) -> None:
    """Print hours planned and spent, and the limit beside what was spent."""
    if rows := hours_rows(document):
        print_table(HOURS_HEADS, rows)
    if told := limit_sentence(document):
        print(f"{told}.")


def tell_transfer(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the few-shot accuracies."""
    if not rows:
        return
    print(f"{rows[0]['shots']}-shot accuracy on {rows[0]['dataset']}, mean of {rows[0]['seeds']} draws:")
    table = [
        (
            row["name"],
            row["protocol"],
            f"{row['accuracy_mean']:.3f}",
            "" if row["accuracy_std"] is None else f"{row['accuracy_std']:.3f}",
        )
        for row in rows
    ]
    print_table(("backbone", "protocol", "accuracy", "std"), table)
