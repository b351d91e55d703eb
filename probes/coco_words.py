"""The words for COCO's 80 object categories, and the pairs of words that are no object at all."""

from __future__ import annotations

_ROWS = """
person: man, woman, boy, girl, child, kid, baby, toddler, infant, adult, teenager, teen, youth, guy, gentleman, lady, gal, human, pedestrian, passenger, driver, rider, biker, bicyclist, cyclist, motorcyclist, skier, snowboarder, skateboarder, skater, surfer, swimmer, player, batter, pitcher, catcher, umpire, referee, athlete, runner, jogger, walker, hiker, fisherman, sailor, soldier, officer, policeman, policewoman, cop, firefighter, fireman, worker, employee, businessman, businesswoman, chef, cook, baker, waiter, waitress, bartender, farmer, cowboy, vendor, shopper, customer, tourist, traveler, traveller, spectator, onlooker, bystander, student, teacher, doctor, nurse, dentist, bride, groom, mother, mom, father, dad, parent, son, daughter, brother, sister, grandmother, grandfather, friend, musician, artist, dancer, someone, somebody
bicycle: bike, tricycle
car: automobile, sedan, suv, van, minivan, taxi, cab, taxicab, jeep, hatchback, convertible, limousine, coupe
motorcycle: motorbike, motor bike, motor cycle, scooter, moped, dirt bike
airplane: air plane, plane, aeroplane, aircraft, jet, airliner, jetliner, biplane, seaplane
bus: minibus, school bus, double decker, trolley
train: locomotive, tram, subway, railcar, caboose
truck: lorry, pickup, semi, firetruck, fire truck, fire engine, tractor trailer
boat: ship, sailboat, canoe, kayak, ferry, yacht, rowboat, raft, gondola, motorboat, speedboat, barge, dinghy, vessel
traffic light: stoplight, stop light, traffic signal, signal light
fire hydrant: hydrant
stop sign:
parking meter:
bench: pew, park bench
bird: duck, goose, gull, seagull, pigeon, swan, owl, eagle, hawk, parrot, rooster, hen, ostrich, penguin, flamingo, pelican, heron, crow, sparrow, robin, parakeet, peacock, dove, falcon, vulture, stork, hummingbird, duckling
cat: kitten, kitty, feline
dog: puppy, pup, canine, poodle, beagle, terrier, dachshund, bulldog, labrador, retriever, spaniel, chihuahua, husky, corgi, pug, collie, dalmatian
horse: pony, foal, colt, stallion, mare
sheep: lamb, ram, ewe
cow: cattle, bull, calf, ox, heifer, steer, bison, buffalo
elephant:
bear: polar bear, grizzly, panda, bear cub
zebra:
giraffe:
backpack: knapsack, rucksack
umbrella: parasol
handbag: purse, hand bag, pocketbook
tie: necktie, bow tie, bowtie, neck tie
suitcase: suit case, luggage, briefcase
frisbee: flying disc
skis: ski
snowboard: snow board
sports ball: ball, soccer ball, tennis ball, beach ball
kite:
baseball bat: bat
baseball glove: mitt, catcher mitt
skateboard: skate board, longboard
surfboard: surf board, paddleboard, boogie board
tennis racket: racket, racquet, tennis racquet
bottle: wine bottle, beer bottle, water bottle
wine glass: wineglass, champagne glass
cup: mug, teacup, coffee cup, tea cup
fork:
knife: butter knife, pocketknife
spoon: teaspoon, tablespoon
bowl:
banana:
apple:
sandwich: burger, hamburger, cheeseburger, sub, panini
orange: tangerine, mandarin, clementine
broccoli:
carrot:
hot dog: hotdog, frankfurter
pizza:
donut: doughnut
cake: cupcake, cheesecake, birthday cake, wedding cake
chair: seat, armchair, stool, recliner, rocking chair
couch: sofa, loveseat, settee, futon
potted plant: houseplant, house plant, pot plant
bed: bunk, bunk bed, mattress
dining table: table, desk, tabletop, coffee table, kitchen table, picnic table
toilet: urinal, commode, toilet seat
tv: television, monitor, tv screen, computer monitor, computer screen, television set, flat screen
laptop: computer, laptop computer, notebook computer, macbook
mouse: computer mouse
remote: remote control, controller, game controller, wii remote
keyboard: computer keyboard
cell phone: cellphone, phone, mobile phone, telephone, smartphone, iphone
microwave: microwave oven
oven: stove, stove top, stovetop, range oven
toaster: toaster oven
sink: washbasin, wash basin
refrigerator: fridge
book: textbook, novel, paperback
clock: wristwatch, clock face
vase: flower vase
scissors: shears
teddy bear: teddy, stuffed bear, toy bear
hair drier: hair dryer, hairdryer, blow dryer
toothbrush: tooth brush
"""

COCO: dict[str, tuple[str, ...]] = {
    name: (name, *(word.strip() for word in words.split(",") if word.strip()))
    for name, _, words in (line.partition(":") for line in _ROWS.strip().splitlines())
}
"""Canonical name -> its words, itself first. Made for this project from common knowledge: close to, and not the same as, the
list of the CHAIR releases, so compare with their figures only what is scored with one list."""

NO_OBJECT = (
    "home plate", "train track", "bus stop", "bird house", "dog house", "mouse pad", "orange juice", "bear hug",
)  # fmt: skip
"""Two words that say something else than the one they contain."""

ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
"""A baby or adult one of these is no person."""

VEHICLES = ("airplane", "train", "bus", "car", "boat")
"""A passenger one of these is no person either."""
