"""The words of the story world and what is true in it: who loves which food, who made which thing, which animal makes which sound.

Common words are listed; the long tail is put together from parts or syllables. Everything is fixed by WORLD_SEED and independent of a
study's seed: the world is what a model can learn by heart, and its facts are as rare as their owners, whose frequencies fall like
1 / rank (Zipf's law). Thousands of facts, so that more capacity keeps paying. No file is read or written here.
"""

# ruff: noqa: SIM905 (word lists are easier to read and to change as running text)

import random
from collections.abc import Iterable, Sequence

from study.stories.grammar import Entity, Table

WORLD_SEED = "stories-1"
N_NAMES, N_PLACES, N_OBJECTS, N_ANIMALS = 900, 220, 1000, 320
ANIMALS_PER_PLACE = 12
PRONOUNS = {
    "girl": {"he": "she", "him": "her", "his": "her", "He": "She", "His": "Her"},
    "boy": {"he": "he", "him": "him", "his": "his", "He": "He", "His": "His"},
}

GIRLS = """Lily Mia Anna Sue Emma Lucy Sara Rosie Ella Zoe Amy Nora Grace Ruby Clara Molly Ivy Daisy Jane Kate Alice Hazel Maya Nina Tess
Olive Penny Rose Eva Leah Holly Fern Greta Wendy Iris Jill Lola Pearl Joy Maggie Nell Bella Cora Dora Edith Flora Gwen Heidi Ida June Kira
Lena Mabel Opal Polly Quinn Rita Sally Tilly Una Vera Willa Yara Zelda""".split()
BOYS = """Tom Tim Ben Max Sam Jack Leo Finn Bob Joe Theo Dan Luke Noah Oscar Peter Will Adam Henry Charlie Eli Fred George Hugo Ian Jake
Kyle Louis Mark Ned Owen Paul Ray Simon Toby Victor Walter Alex Billy Carl Dean Ezra Frank Gus Harry Ivan Jim Karl Liam Milo Nick Otto Pip
Ralph Seth Ted Vince Wes Yuri Zack Andy Bruno""".split()
PLACES = """park forest beach garden market farm river school meadow village lake hill library barn pond zoo castle orchard mill harbor
bakery field valley cave museum station bridge island mountain playground workshop lighthouse church fair stable desert jungle swamp tower
attic cellar kitchen street square well temple quarry vineyard inn theater""".split()
OBJECTS = """ball kite key boat doll hat drum box ring bell lamp book coin cup flute shell basket rope bucket mirror stone feather whistle
blanket spoon wagon map clock button balloon candle brush scarf chest sled jar ladder puzzle crown mask bottle horn ribbon shoe cart wheel
top necklace fan pillow pencil lantern net bowl bag chain flag boot kettle glove hammer plate tent violin umbrella apron anchor marble
compass needle medal pipe statue toy pot cage saddle harp rocket robot wand stool carpet tray vase purse thimble locket""".split()
OBJECT_FRONTS = """moon star sea river garden kitchen snow summer winter silver magic wind rain sun story toy royal dream forest mountain
travel night morning party fairy pirate giant thunder honey candy shadow rainbow harvest market castle music treasure wishing fishing
""".split()
ANIMALS = """dog cat bird fox bear rabbit frog mouse duck horse cow pig owl fish bee squirrel turtle lion sheep goat monkey elephant deer
wolf hen crab snail whale swan goose otter beaver badger hedgehog mole crow robin parrot penguin seal dolphin camel zebra giraffe tiger
panda koala donkey pony lamb kitten puppy spider ant beetle cricket butterfly bat rat lizard toad eagle hawk raven dove sparrow stork
heron moose buffalo weasel ferret raccoon skunk llama yak hippo rhino walrus""".split()
ANIMAL_FRONTS = "river snow forest desert mountain island garden meadow swamp night sea barn jungle marsh cave field".split()
TRAITS = """little kind brave happy curious clever gentle shy funny quiet cheerful lucky proud sleepy honest silly lonely stubborn polite
careful messy hungry playful patient restless noisy dreamy eager merry thoughtful bold grumpy tidy friendly humble graceful wild lively
nervous forgetful generous modest strong tiny calm bright nimble loyal sweet""".split()
LOOKS = """big small old shiny pretty red blue green tiny golden strange soft round broken dusty bright heavy smooth lovely odd painted
sparkling wooden wet yellow purple striped warm rusty spotted long plain crooked fancy white black hidden ancient delicate pink""".split()
COLORS = "red blue green yellow purple orange pink white black brown gray golden silver violet crimson turquoise".split()
MATERIALS = """wood glass clay silver wool stone paper copper leather iron straw silk gold tin bone shell wax cotton brass amber cork
marble felt bamboo pearl velvet ivory steel""".split()
MAKERS = """baker smith potter weaver tailor carpenter miller sailor farmer painter jeweler cobbler mason gardener fisherman hunter king
queen wizard witch teacher doctor clockmaker toymaker shepherd cook nurse pirate monk glassblower tinker beekeeper ropemaker""".split()
FOODS = """apples bread cake honey berries cheese nuts carrots soup cookies corn plums rice pears beans grapes seeds eggs figs cherries
pancakes noodles peaches turnips pumpkin walnuts melons olives mushrooms radishes clover acorns lettuce oats dates peas butter jam
chestnuts lentils onions pickles raisins spinach toast waffles yogurt almonds""".split()
HOMES = """nest log burrow den barn pond tree cave bush hollow shed hive box tunnel tower hedge well basket haystack reed wall stump ditch
rock attic boat bridge cellar kennel chimney""".split()
HOME_FRONTS = """old warm dark deep small dry green hollow quiet muddy mossy crooked sunny cold high narrow leafy sandy secret stony round
windy empty grassy hidden shady snug tall ruined wide""".split()
FEELINGS = """happy sad scared excited proud angry tired worried surprised lonely sorry grateful calm shy jealous hopeful curious nervous
cheerful brave""".split()
FAMILY = "mom dad grandma grandpa sister brother aunt uncle mother father cousin neighbor nanny tutor teacher coach".split()
SAID = (
    "said cried whispered shouted called replied sighed answered laughed sang murmured yelled announced declared muttered giggled".split()
)
HOW = """quickly slowly softly happily gently loudly quietly carefully sadly bravely proudly kindly eagerly gladly calmly politely
nervously gracefully suddenly warmly""".split()
VERBS = """catch carry find keep follow warm wake guard paint hold measure cover reach hide sort mix lift feed dry polish count open close
cool clean brighten gather chase scare bless cross mend share shake trap""".split()
NOUNS = """apple river moon star bird stone flower cloud song road bell boat tree king lamp door horse rain candle garden
shadow winter summer letter mountain feather window fire ocean dream basket ladder mirror kitten needle whistle pillow blanket morning
evening island sparrow pebble lantern thread button castle valley rose seed wave nest bridge bee crown shoe field barrel""".split()
ADVERB_TAIL = """angrily awkwardly badly barely briefly brightly busily certainly cleverly
clumsily coldly correctly cruelly curiously daintily
dearly deeply dreamily easily exactly faintly fairly firmly foolishly freely fully gravely greedily hardly hastily heartily honestly
hopefully innocently keenly lazily lightly merrily mostly neatly oddly openly patiently perfectly plainly promptly rapidly rarely
readily rudely safely sharply sleepily smoothly solemnly sternly strangely sweetly swiftly tenderly thoughtfully tightly truly vaguely
wearily wildly wisely""".split()
SEEN = """acorn alarm angel ant apple arrow baby banner barn bead beard beast bench berry blossom board bone branch brick brook bubble bug
bulb bull bun butter cabin cactus camp cannon card carrot cat cellar chain chair chalk cheese cherry chick child chimney circle city claw
coach coat coconut comet corner cottage couch cousin cricket crumb curtain daisy dancer desk diamond dinner dragon drawer dress driver
egg elf engine farmer fence fern finger flame flea flood floor forest fountain fox friend frost giant goat grandma grape grass guest
guitar hammer hand hawk heart helmet hill hook house hut icicle iron jacket jewel jug juice kettle kid knot lake lamb lawn lemon lily
lizard log lord maid maze meal melon mill monk moth mouth mud muffin nail neighbor noodle nose nut oak oar onion oven page paint palace
parade path paw peach pear pepper pie pillar pilot pirate plank plant plum pocket poet pole pony pool porch potato prince pumpkin puppet
rabbit raft rail rainbow rake reed rider riddle robin rocket roof root rug sack sail salt sand school seal servant shark sheep shelf ship
shoulder shovel shrub sister skirt slope smoke snail snake soldier soup spark spider spring squash squirrel stair statue steam stem stick
storm stream string stump sugar sun swan sweater table tail target teacher tiger toast toe tomato tooth torch track train trumpet trunk
tulip tunnel turnip twig uncle vase vest village vine wagon waiter wall wasp weed whale wheat widow willow wing witch wizard worm yard
""".split()
DID = """counted chased watched drew painted followed cleaned carried kissed moved lifted hid heard smelled touched loved missed named
visited washed fed hugged kicked licked passed picked pushed pulled remembered forgot rolled saved shook sold stacked tasted thanked
trusted tickled untied wanted warmed woke wrapped admired borrowed brushed caught climbed covered dropped dusted enjoyed fixed greeted
guarded helped ignored imagined knew met noticed praised""".split()
MORE_LOOKS = """bitter bouncy bumpy clean clear cloudy cozy curly curved dented dim empty faded flat fluffy foggy frozen fuzzy
glassy gloomy glowing greasy grim hairy hard hidden hollow huge icy itchy jagged large lazy loose loud lumpy mighty
misty moldy muddy narrow neat new noble pale patchy perfect plump pointed proud quick rare raw rich ripe rough
salty scaly scary shabby sharp short silent silky simple sleek slim slimy slippery slow smelly smoky snowy solid
sour sparkly steep sticky stiff stormy straight sturdy sunny sweet swift tall tame tangled thick thin tight tough
twisted useful vast velvety wavy weak weird wide wild windy wise wobbly woolly wrinkled young zigzag""".split()
JOBS = """a pilot|a dancer|a doctor|a singer|a farmer|a sailor|a painter|a baker|a teacher|a knight|an inventor|an explorer|a magician|
a builder|a writer|a racer|a captain|a gardener|an astronaut|a drummer|a firefighter|a ranger|a clown|a judge|a diver|a poet""".replace(
    "\n", ""
).split("|")
WEATHERS = """sunny rainy windy cold warm cloudy snowy foggy hot bright gray stormy quiet lovely fine wet frosty clear dark golden mild
chilly breezy dry fresh hazy""".split()
NUMBERS = "three four five six seven eight nine ten".split()
_ONSETS = "b d f g h j k l m n p r s t v w z br dr fl gr pl st tr bl cl".split()
_VOWELS = "a e i o u a e i o ee oo ai".split()
_CODAS = "l m n r s t b d x nk ll mp ck".split()


def zipf_table(entities: Sequence[Entity], shift: float = 4.0) -> Table[Entity]:
    """Entities with weights 1 / (rank + shift) (Zipf-Mandelbrot); the shift flattens the head.

    Raises:
        ValueError: two have one text, which then would have two derivations.
    """
    if len({entity[""] for entity in entities}) < len(entities):
        raise ValueError("a table needs entities with different texts.")
    return Table(tuple(entities), tuple((rank + shift) ** -1.0 for rank in range(len(entities))))


def words(texts: Iterable[str]) -> list[Entity]:
    """Entities without attributes, each text once."""
    return [{"": text} for text in dict.fromkeys(texts)]


def with_article(text: str) -> str:
    """The text behind "a" or "an"."""
    return f"{'an' if text[0].lower() in 'aeiou' or text.startswith('honest') else 'a'} {text}"


def invent(rng: random.Random, n: int, taken: set[str]) -> list[str]:
    """Make `n` pronounceable words of two or three syllables that are not in `taken`; they are added to it."""
    made: list[str] = []
    while len(made) < n:
        parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 2, 3)))]
        word = "".join(parts) + (rng.choice(_CODAS) if rng.random() < 0.5 else "")
        if len(word) <= 8 and word not in taken:
            taken.add(word)
            made.append(word)
    return made


def compound(rng: random.Random, fronts: Sequence[str], backs: Sequence[str], n: int) -> list[str]:
    """Draw `n` different two-word names."""
    every = [f"{front} {back}" for front in fronts for back in backs if front != back]
    return rng.sample(every, n)


def saying(rng: random.Random) -> str:
    """A line of five words that means little and has to be learned by heart."""
    shape = rng.choice(
        ("{A} {n}s {v} the {b} {m}.", "{V} the {n} and {w} the {m}.", "No {n} can {v} {a} {b} {m}.", "Every {n} must {v} its {b} {m}.")
    )
    n, m = rng.sample(NOUNS, 2)
    v, w = rng.sample(VERBS, 2)
    a, b = rng.sample(TRAITS, 2)
    return shape.format(A=a.capitalize(), n=n, v=v, V=v.capitalize(), w=w, m=m, b=b, a="its" if rng.random() < 0.5 else "the")


# ---- the entities ----


def world() -> dict[str, list[Entity]]:
    """All entities, most frequent first: girl, boy (names), place, object, animal."""
    rng = random.Random(WORLD_SEED)
    taken = {word.lower() for word in [*GIRLS, *BOYS, *PLACES, *OBJECTS, *ANIMALS, *FOODS, *NOUNS, *VERBS, *TRAITS]}
    n_new = (N_NAMES - len(GIRLS) - len(BOYS)) // 2
    made: dict[str, list[Entity]] = {}
    for kind, listed in (("girl", GIRLS), ("boy", BOYS)):
        made[kind] = [_person(rng, name, kind) for name in [*listed, *(w.capitalize() for w in invent(rng, n_new, taken))]]
    surnames = [word.capitalize() for word in invent(rng, N_PLACES, taken)]
    hills = [f"{word.capitalize()} {rng.choice(('Hill', 'Lake', 'Bay', 'Wood'))}" for word in invent(rng, N_PLACES - len(PLACES), taken)]
    made["place"] = [_place(rng, name, surnames[i]) for i, name in enumerate([*PLACES, *hills])]
    objects = [*OBJECTS, *compound(rng, OBJECT_FRONTS, OBJECTS, N_OBJECTS - len(OBJECTS))]
    made["object"] = [_object(rng, name) for name in objects]
    n_rest = N_ANIMALS - len(ANIMALS)
    rest = [*compound(rng, ANIMAL_FRONTS, ANIMALS, n_rest // 2), *invent(rng, n_rest - n_rest // 2, taken)]
    rng.shuffle(rest)
    sounds = invent(rng, N_ANIMALS, taken)
    made["animal"] = [_animal(rng, name, sounds[i]) for i, name in enumerate([*ANIMALS, *rest])]
    return made


def _person(rng: random.Random, name: str, kind: str) -> Entity:
    own = {"kind": kind, "age": rng.choice(NUMBERS), "food": rng.choice(FOODS), "color": rng.choice(COLORS), "job": rng.choice(JOBS)}
    return {"": name, **PRONOUNS[kind], **own}


def _place(rng: random.Random, name: str, surname: str) -> Entity:
    kind = rng.choice(("girl", "boy"))
    sight = f"{with_article(rng.choice(HOME_FRONTS))} {rng.choice(NOUNS)}"
    own = {"sight": sight, "smell": rng.choice(FOODS), "saying": saying(rng), "job": rng.choice(MAKERS)}
    keeper = f"{'Mrs.' if kind == 'girl' else 'Mr.'} {surname}"
    return {"": name if name[0].isupper() else f"the {name}", **own, "keeper": keeper, "keeper_he": PRONOUNS[kind]["he"]}


def _object(rng: random.Random, name: str) -> Entity:
    use = f"{rng.choice(VERBS)} the {rng.choice(NOUNS)}s"
    return {"": name, "color": rng.choice(COLORS), "material": rng.choice(MATERIALS), "maker": rng.choice(MAKERS), "use": use}


def _animal(rng: random.Random, name: str, sound: str) -> Entity:
    home = f"{rng.choice(HOME_FRONTS)} {rng.choice(HOMES)}"
    own = {"sound": sound, "Sound": sound.capitalize(), "home": home, "a_home": with_article(home), "song": saying(rng)}
    return {"": name, "a": with_article(name), "color": rng.choice(COLORS), "food": rng.choice(FOODS), **own}


# ---- the tables ----


def tables() -> dict[str, Table[Entity]]:
    """Tables by name; those that depend on a remembered entity by name and that entity's text."""
    facts = world()
    looks = [*LOOKS, *MORE_LOOKS]
    plain = {
        "trait": TRAITS, "look": LOOKS, "some_look": looks, "noun": [*NOUNS, *SEEN], "nouns": [f"{word}s" for word in NOUNS],
        "verb": VERBS, "verb_up": [word.capitalize() for word in VERBS], "did": DID, "how": [*HOW, *ADVERB_TAIL], "said": SAID,
        "food": FOODS, "color": COLORS, "material": MATERIALS, "feeling": FEELINGS, "number": NUMBERS,
    }  # fmt: skip
    for name, listed in {"trait": TRAITS, "look": LOOKS, "some_look": looks, "weather": WEATHERS}.items():
        plain[f"a_{name}"] = [with_article(word) for word in listed]
        plain[f"a_{name}_up"] = [word.capitalize() for word in plain[f"a_{name}"]]
    found = {name: zipf_table(words(texts), shift=20.0) for name, texts in plain.items()}
    found |= {name: zipf_table(facts[name]) for name in ("place", "object", "animal")}
    found |= {f"name|{kind}": zipf_table(facts[kind]) for kind in PRONOUNS}
    found |= {f"animal|{place['']}": _animals_of(place, facts["animal"], i) for i, place in enumerate(facts["place"])}
    names = [entity for pair in zip(facts["girl"], facts["boy"], strict=False) for entity in pair]
    kinds = tuple({"": kind, **PRONOUNS[kind]} for kind in PRONOUNS)
    return found | {"kind": Table(kinds, (1.0, 1.0)), "name": zipf_table(names), "family": zipf_table(words(FAMILY))}


def _animals_of(place: Entity, animals: Sequence[Entity], index: int) -> Table[Entity]:
    """The few animals that are met at a place, common ones more often: an association between two lists that has to be learned."""
    rng = random.Random(f"{WORLD_SEED}-{index}-{place['']}")
    chosen: list[Entity] = []
    while len(chosen) < ANIMALS_PER_PLACE:
        candidate = animals[min(int(len(animals) ** rng.random()) - 1, len(animals) - 1)]  # density about 1 / rank
        if candidate not in chosen:
            chosen.append(candidate)
    return zipf_table(chosen)
