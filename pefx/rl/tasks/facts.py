"""Facts of a person's own: who has which thing of what colour, asked for in several wordings.

A problem's context holds the fact that is asked for, from level 2 among `level` - 1 others of the same person, as a
search would bring them. Without it a policy can only know what it has learned. Held out are wordings, not facts.
"""

from random import Random

from pefx.rl.tasks.kind import Kind, Options, known, spoken
from pefx.rl.tasks.protocol import END, Problem

PEOPLE = ["amy", "ben", "dan", "eve", "ian", "jim", "kay", "lee", "max", "pat", "sue", "tom"]
THINGS = ["bag", "cup", "hat", "key", "mug", "pen"]
COLOURS = ["black", "blue", "gold", "green", "grey", "pink", "red", "tan", "white"]
WORDINGS = ["{who} {thing}?", "{thing} of {who}?", "what {thing} has {who}?", "{who} owns what {thing}?"]


def facts_of(user: int, level: int) -> dict[tuple[str, str], str]:
    """Colours by person and thing, as a user knows them: 12 facts at level 1, 12 more at each next."""
    random = Random(f"facts {user}")
    places = [(who, thing) for who in PEOPLE for thing in THINGS]
    return {place: random.choice(COLOURS) for place in random.sample(places, k=len(places))[: 12 * level]}


def draw(random: Random, level: int, options: Options) -> Problem:
    """One fact, one wording; a prompt is the same for every user, its answer is not."""
    facts = facts_of(int(options["user"]), level)
    asked = random.choice(list(facts))
    others = [place for place in facts if place != asked]
    found = [asked, *random.sample(others, k=level - 1)]
    random.shuffle(found)
    context = ", ".join(f"{who} {thing} {facts[who, thing]}" for who, thing in found) + END
    who, thing = asked
    prompt = random.choice(WORDINGS).format(who=who, thing=thing) + END
    return Problem(prompt, {"answer": facts[asked]}, context=context)


KIND = Kind(draw, spoken, known, options={"user": range(2**32)})
