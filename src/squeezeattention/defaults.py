"""What is used where nothing is said, in one place (and without torch: the command line's help reads it)."""

#: Which tokens a layer keeps.
DEFAULT_POLICY = "echo"
#: How the cache is divided among layers and KV heads with that policy; each policy names its own.
DEFAULT_ALLOCATOR = "global"
#: Share of the prompt that is kept.
DEFAULT_BUDGET = 0.2
#: Tokens a layer on average that a share of a short prompt does not go below: sinks, and room for an answer.
MIN_TOKENS = 64
#: Tokens a layer on average in a conversation: the first turns are short, and a share of them would leave nothing for
#: the next, while a number of tokens holds however long the talk gets.
CHAT_BUDGET = 512
#: Tokens of a text that a calibration reads at a time; what comes after them is a text of its own.
CALIBRATION_PART = 2048
