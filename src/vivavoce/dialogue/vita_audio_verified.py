from vivavoce.dialogue.vita_audio_policies import *
from vivavoce.dialogue.vita_audio_policies import Choice, Scores, Policy, Acceptance
from vivavoce.dialogue.vita_audio_cycles import Checked, TakenBack, write_verified, Draft, write_by_grammar
