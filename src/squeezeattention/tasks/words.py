"""Plain English words for the tasks' names, keys and lists: data only, drawn from by ``names.py``."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    """
    able acid agile airy alert alpine amber ample ancient antique arctic ardent arid ashen atomic autumn awake azure
    balmy bare basic beige big bitter black bland blank blond blue blunt bold bony bouncy brave breezy brief bright
    brisk bristly broad broken bronze brown bubbly bumpy busy calm candid careful casual central cheap cheerful
    chilly chubby civic civil classic clean clear clever close cloudy clumsy coarse coastal cold cool copper coral
    costly cosy cozy crafty creamy crimson crisp crooked crude curly curved cyan daily damp daring dark dear decent
    deep dense dim direct distant dizzy domestic double dry dull durable dusty dutiful eager early earnest earthy
    eastern easy elastic elder electric elegant empty equal eternal even exact exotic extra faint fair faithful
    famous fancy fast feathery fertile festive fierce fiery final fine firm flaky flat fleet flexible floral fluent
    fluffy fluid folded fond formal fragile fragrant frank free fresh friendly frosty frozen frugal full funny furry
    fuzzy gallant gaudy gentle genuine giant giddy gifted glad glassy gleaming global glossy golden good graceful
    grand grassy grateful gray great green gritty guarded hairy handy happy hard hardy harsh hasty hazy heavy
    helpful hidden high hollow honest hopeful hot huge humble humid hungry icy ideal idle indigo inland inner intact
    iron ivory jagged jolly jovial joyful juicy jumbo keen kind knotty known lanky large late lavish lazy leafy lean
    legal level light likely limber linear little lively local lofty lone long loose loud lovely low loyal lucid
    lucky lunar lush magenta magic main major mellow merry mighty mild milky minor minty misty mobile modern modest
    moist mossy muddy mute narrow native natural navy neat new nimble noble noisy northern novel numb oaken oblong
    odd oily old olive open orange orderly outer oval pale paper parallel patient peaceful pearly perky pink plain
    playful plump plush polar polished polite poor precise pretty prime private prompt proper proud public pure
    purple quaint quick quiet radiant rainy rapid rare raw ready real red regal regular remote rich rigid ripe
    robust rocky rosy rotund rough round royal rubber ruby rural rustic rusty sacred safe salty sandy scarlet secret
    senior serene shabby shady shaggy shallow sharp shiny short shy silent silky silly silver simple single sleek
    sleepy slender slim slippery slow small smart smoky smooth snowy snug sober soft solar solemn solid sonic sour
    southern spare spicy spiky spiral splendid spotless spry square stable stark steady steep sticky stiff still
    stony stormy stout straight strange striped strong sturdy subtle sudden sugary summer sunny superb supple swift
    tall tame tan tangy tardy tart tender tepid thick thin thirsty tidy tight tiny tired topaz total tough tranquil
    trim tropical trusty twin upper urban useful usual vacant vague valiant vast velvet vibrant violet vital vivid
    warm wary watery wavy weary weekly western wet white whole wide wild windy winter wise witty wooden woolly
    worthy yellow young zany zealous zesty
    """
)
NOUNS = _words(
    """
    acorn actor album alley almond alpaca altar anchor ankle antler apple apron arch arena armor arrow atlas attic
    aunt author badge badger bagel bakery balcony ball bamboo banana banjo banker barge barley barn barrel basin
    basket bay beach beacon bead beak beam bean bear beaver bed bee beetle bell belt bench berry bicycle bird
    biscuit bison blanket blossom boat bonnet book boot bottle boulder bow bowl box bracelet branch brass bread
    brick bridge broom brother brush bucket buckle buffalo bugle bus bush butter button cabbage cabin cable cactus
    cake camel camera canal candle cannon canoe canvas canyon cape captain car caravan carpet carrot cart castle cat
    cave cedar cello chain chair chalk chapel chariot cheese cherry chess chest chicken chimney chisel church cider
    cinema circle circus citadel city clarinet clay cliff cloak clock cloth cloud clover coach coal coast coat
    cobbler coconut coffee coin collar colt comb comet compass cook cookie cork corn cottage cotton couch cow coyote
    crab cradle crane crate crayon cream creek cricket crocus crow crown crystal cup cupboard curtain cushion dagger
    dairy daisy dam dance dancer dawn deer dentist desert desk diamond diary dish dock doctor dog doll dolphin
    donkey door dove dragon drawer dress driver drum duck dune eagle ear easel egg elbow elephant elk elm ember
    engine envelope fabric factory falcon family fan farm farmer father feast feather fence fern ferret ferry fiddle
    field fig finch finger fire fish fisher flag flame flask fleece flock flour flower flute foal forest fork fort
    fossil fountain fox frame friend frog fruit funnel galaxy gallery garage garden garlic garnet gate gazelle ghost
    giraffe glacier glass globe glove goat goose gorge gown grain grape grass gravel grove guitar gull hammer
    hammock hamster harbor hare harp harvest hat hawk hay hazel heart hedge heron hill hinge hive hood hook horn
    horse hotel house hunter hut hyena iceberg igloo inlet insect island ivy jacket jaguar jar jasmine jelly jetty
    jewel judge juice jungle kayak kennel kettle key king kite kitten knee knife knight knot koala label lace ladder
    lady lagoon lake lamb lamp lantern larch lark lasso laundry lava lawn lawyer leaf leather ledge lemon lens
    leopard letter library lilac lily lime linen lion lizard llama lobster locket lodge log loom lotus lynx magnet
    magpie mail mango mantle map maple marble market marsh mask mast mat meadow medal melon merchant mermaid meteor
    mill miller mine mint mirror mitten moat mole monk monkey moon moose moss moth mother motor mountain mouse mug
    mule museum mushroom nail napkin neck necklace needle nephew nest net nickel night nurse nut oak oar oasis oat
    ocean octopus office oil onion opal opera orbit orchard orchid organ osprey ostrich otter oven owl ox oyster
    paddle page painter pajamas palace palm pan panda panther parade parcel park parrot parsley pasta path patio
    pavilion pea peach peacock peak peanut pear pearl pebble pelican pen pencil penguin pepper petal phone photo
    piano picnic pie pier pig pigeon pillar pillow pilot pine pirate pitcher plain planet plank plant plate plaza
    plow plum pocket poem poet pond pony poplar porch port potato potter pottery prairie prince prism pumpkin puppet
    puppy purse puzzle quail quarry quartz queen quill quilt rabbit raccoon radio radish raft rail rain rake ram
    ranch raven razor reef ribbon rice ridge ring river road robe robin rocket roof room rooster root rope rose
    rudder rug ruler saddle sail sailor salad salmon salt sand sandal sapphire satchel sauce scale scarf school
    scooter scout screw sculptor sea seal seat seed shark sheep shelf shell shepherd shield ship shirt shoe shop
    shore shovel shrimp sister skate sketch skirt sky sled sleeve slipper snail snake snow sock sofa soldier song
    soup spade sparrow spear spider spinach sponge spoon spring spruce squash squid squirrel stable stage stair
    stamp star statue steam stem stone stool store stork storm stove stream street string student suitcase summit
    sun swan sweater swing sword table tailor tapestry teacher teapot temple tent terrace theater thimble thistle
    thread throne thumb thunder ticket tiger tile timber toad toast tomato torch tortoise towel tower town tractor
    trail train tray treasure tree trellis trout truck trumpet trunk tulip tunnel turkey turnip turtle tutor
    umbrella uncle valley van vase vault veil vessel vest village vine vineyard violin volcano wagon waiter wall
    wallet walnut walrus wardrobe watch water wave weasel weaver well whale wharf wheat wheel whistle willow window
    wing wire wizard wolf wood wool workshop wreath wren yacht yard yarn zebra zipper
    """
)
VERBS = _words(
    """
    absorb accept adapt add admire admit adopt adore advise agree aim allow amuse announce answer appear approve
    argue arise arrange arrive ask assemble assist attend avoid await bake balance bathe become begin believe belong
    bend bless blink bloom boil borrow bounce breathe bring build bury buy calculate call care carry carve catch
    celebrate change chase chat check cheer choose chop clap climb collect come compare compete complete compose
    connect consider cook cough count cover crawl create cross cry cure cut deal decide decorate defend deliver
    depend describe deserve design develop dig discover discuss dive divide donate draw dream drink drive drop earn
    eat educate embrace employ enjoy enter escape examine exchange exist expand expect explain explore express fade
    fall fasten feed feel fetch fill find finish fit fix float flow fly follow forget forgive form freeze gain
    gather give glow grab greet grin grow guess guide handle hang happen hear help hide hike hire hold hop hope hug
    hum hurry imagine improve include inform inspire invent invite join juggle jump keep kick kneel knit knock know
    laugh launch learn leave lend lift listen live look love maintain make manage march marry measure meet melt mend
    mention mix move multiply need notice obey observe offer operate order paddle paint pardon pass pause pay
    perform persuade pick place plan play please point polish ponder pour practice praise pray prefer prepare
    present press pretend prevent print produce promise protect provide pull punch push quote race reach read
    realize receive recite record reduce refer reflect refuse relax rely remain remember remind remove rent repair
    repeat replace reply report request rescue rest return reveal ride rise roam roll row rub run sail save say
    scatter scrub search see seek select sell send serve sew shake share shine shout show shrug sing sit skip sleep
    slide smell smile sneeze solve sort speak spell spend spin spread stand stare start stay stir stitch stop store
    stretch study suggest support suppose surprise surround swim take talk taste teach tell thank think throw tickle
    tie touch trace trade travel treat trust try tumble turn twist type understand unite unlock use vanish visit
    wait wake walk wander want warn wash waste wear weave weigh welcome whisper win wink wish wonder work worry wrap
    write yawn yell
    """
)
