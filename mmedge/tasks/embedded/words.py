"""The words of the embedded task's stories: people, things, containers, measures, and how English bends them.

    number_word(12)          "twelve"
    with_article("apple")    "an apple"
    plural("shelf")          "shelves"

Knows nothing about sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMBER_WORDS = (*_SMALL.split(), "nineteen", "twenty")
_IRREGULAR = {
    "child": "children",
    "person": "people",
    "shelf": "shelves",
    "sheep": "sheep",
    "fish": "fish",
    "scarf": "scarves",
    "loaf": "loaves",
    "goose": "geese",
    "fox": "foxes",
    "leaf": "leaves",
}
MEN = _listed(
    "Adam Amir Ben Bilal Carl Chen Daniel David Diego Eli Finn George Henry Hugo Ivan Jack James John Jonas Kofi Leo Luke Mark "
    "Max Milo Nick Noah Omar Paul Pedro Peter Ravi Robert Sam Samir Theo Tim Tom Will Yusuf"
)
WOMEN = _listed(
    "Ada Alice Amy Ann Anna Carla Clara Dina Ella Emma Eva Farah Grace Ines Jana Jane Julia Kate Lara Lily Lina Lucy Maria Mary "
    "Mia Mira Nadia Nina Nora Olivia Paula Rosa Ruth Sara Sofia Susan Tara Uma Vera Wanda Yara Zoe"
)
MALE_ROLES = ("my uncle", "my brother", "the baker", "the farmer", "Mr. Green", "Grandpa", "the teacher", "our neighbor")
FEMALE_ROLES = ("my aunt", "my sister", "the gardener", "the coach", "Mrs. Reed", "Grandma", "the librarian", "the shopkeeper")


@dataclass(frozen=True)
class Goods:
    """A kind of thing that people have.

    Attributes:
        nouns: What is counted, in the singular.
        gains: How it is got, in the past tense.
        losses: How it goes, in the past tense, without saying to whom.
        containers: What it comes in, with the preposition for being there.
    """

    nouns: tuple[str, ...]
    gains: str
    losses: str
    containers: tuple[str, ...]


GOODS = {
    "fruit": Goods(
        _listed(
            "apple pear plum peach lemon orange banana carrot tomato potato nut cherry onion pepper melon grape mushroom olive "
            "date fig berry apricot mango chestnut"
        ),
        "bought|picked|got|found|gathered",
        "ate|gave away|threw away|sold|used|dropped",
        ("in box", "in bag", "in basket", "on tray", "in crate", "in bowl", "on plate", "in bucket"),
    ),
    "baked": Goods(
        _listed("egg cookie muffin cupcake sandwich candy pancake pretzel donut biscuit cracker pie waffle dumpling roll"),
        "bought|made|got|prepared|ordered",
        "ate|gave away|threw away|sold|dropped",
        ("in box", "in bag", "in basket", "on tray", "in jar", "on plate", "in carton", "in tin"),
    ),
    "things": Goods(
        _listed(
            "marble sticker pencil book shell stone stamp coin card candle button balloon ribbon badge toy bead ticket photo pen "
            "crayon doll kite notebook magazine magnet ring brick bottle can hat shirt plate cup spoon postcard poster key lamp "
            "chair tile nail pin flag glove puzzle comic rose tulip brush towel pillow bowl basket ball envelope"
        ),
        "bought|found|got|collected|received|ordered",
        "lost|gave away|sold|threw away|broke|used",
        ("in box", "in bag", "in drawer", "in packet", "in crate", "in case", "on shelf", "on table", "in bucket", "in chest"),
    ),
    "animals": Goods(
        _listed("chicken sheep cow goat duck rabbit horse pig fish hen goose pony turtle hamster parrot"),
        "bought|got|raised|adopted",
        "sold|gave away|lost",
        ("in pen", "in cage", "in field", "in barn", "in stable"),
    ),
}
# Those who come and go, where they are, how they come, how they go.
CROWDS = (
    ("passenger", "on the bus", "got on", "got off"),
    ("bird", "on the roof", "landed there", "flew away"),
    ("guest", "at the party", "arrived", "went home"),
    ("car", "in the parking lot", "drove in", "drove away"),
    ("child", "in the playground", "came along", "went home"),
    ("person", "in the library", "came in", "went out"),
    ("student", "in the classroom", "came in", "walked out"),
    ("frog", "in the pond", "jumped in", "hopped away"),
    ("boat", "in the harbor", "sailed in", "sailed out"),
    ("visitor", "in the museum", "came in", "went out"),
    ("duck", "on the lake", "swam over", "flew off"),
    ("cow", "in the field", "came back", "wandered off"),
    ("customer", "in the shop", "walked in", "walked out"),
    ("dancer", "on the stage", "joined in", "sat down"),
    ("truck", "at the gas station", "pulled in", "drove off"),
)
LENGTHS = (
    ("rope", "meter"),
    ("ribbon", "centimeter"),
    ("board", "centimeter"),
    ("cable", "meter"),
    ("pipe", "meter"),
    ("string", "inch"),
    ("hose", "yard"),
    ("wire", "foot"),
    ("stick", "centimeter"),
    ("chain", "meter"),
)
_IRREGULAR |= {"foot": "feet"}
LIQUIDS = (
    ("milk", "liter"),
    ("water", "liter"),
    ("juice", "cup"),
    ("paint", "liter"),
    ("oil", "liter"),
    ("soup", "cup"),
    ("tea", "cup"),
    ("lemonade", "liter"),
    ("gasoline", "gallon"),
    ("syrup", "ounce"),
)
SOLIDS = (
    ("flour", "cup"),
    ("rice", "kilogram"),
    ("sugar", "gram"),
    ("sand", "pound"),
    ("soil", "kilogram"),
    ("honey", "gram"),
    ("corn", "pound"),
    ("coffee", "ounce"),
    ("butter", "gram"),
    ("salt", "gram"),
)
VESSELS = ("bottle", "can", "jar", "bucket", "barrel", "jug")
SACKS = ("bag", "jar", "bucket", "sack", "box", "tin")
# What people do, by the infinitive, the past, the third person, what is counted, and in what time.
ACTIVITIES = tuple(
    tuple(line.split())
    for line in (
        "read read reads page day",
        "walk walked walks kilometer hour",
        "run ran runs mile day",
        "drive drove drives mile hour",
        "swim swam swims lap day",
        "type typed types word minute",
        "knit knitted knits scarf month",
        "bake baked bakes cake hour",
        "paint painted paints picture week",
        "plant planted plants tree day",
        "wash washed washes car hour",
        "write wrote writes letter week",
        "sell sold sells newspaper hour",
        "make made makes bracelet week",
        "score scored scores point game",
        "collect collected collects bottle day",
        "deliver delivered delivers package hour",
        "fold folded folds napkin minute",
        "solve solved solves problem hour",
        "climb climbed climbs step minute",
        "repair repaired repairs bike day",
        "learn learned learns word lesson",
        "earn earned earns dollar hour",
        "save saved saves dollar week",
    )
)
PRICED = ("jacket", "bike", "game", "lamp", "sweater", "backpack", "guitar", "tent", "camera", "scooter", "watch", "dress", "drum")
# A group, two kinds of its members.
PARTS = (
    ("child", "boys", "girls"),
    ("student", "tall", "short"),
    ("ball", "red", "green"),
    ("shirt", "clean", "dirty"),
    ("window", "open", "closed"),
    ("cup", "full", "empty"),
    ("ticket", "sold", "unsold"),
    ("person", "adults", "children"),
    ("book", "old", "new"),
    ("lamp", "on", "off"),
    ("apple", "ripe", "unripe"),
    ("bird", "young", "old"),
    ("dog", "brown", "black"),
    ("seat", "taken", "free"),
    ("pencil", "sharp", "blunt"),
    ("egg", "white", "brown"),
)
SIZES = (("big", "small"), ("large", "little"))
KINDS = (("red", "blue"), ("large", "small"), ("old", "new"), ("green", "yellow"), ("long", "short"), ("black", "white"))
TIMES = (
    ("on Monday", "on Tuesday"),
    ("in the morning", "in the afternoon"),
    ("yesterday", "today"),
    ("in May", "in June"),
    ("last week", "this week"),
    ("before lunch", "after lunch"),
    ("on Saturday", "on Sunday"),
    ("last year", "this year"),
)
WHENS = (
    "yesterday",
    "this morning",
    "on Monday",
    "last week",
    "after lunch",
    "today",
    "in the afternoon",
    "on Friday",
    "at noon",
    "before school",
    "last month",
    "on the weekend",
)
TAKERS = ("friend", "child", "cousin", "neighbor", "classmate", "student", "guest", "brother", "person", "player")
HEAPS = ("pile", "group", "row", "heap", "stack", "set")


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh", "tomato", "potato")) else "s")


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return ("an " if noun[0] in "aeio" or noun.startswith(("um", "hour")) else "a ") + noun


def number_word(value: int) -> str | None:
    """Return a number in words, up to twenty."""
    return NUMBER_WORDS[value] if 0 <= value < len(NUMBER_WORDS) else None


def times_word(value: int) -> str | None:
    """Return the word for a factor that has one of its own: `twice`."""
    return "twice" if value == 2 else None
