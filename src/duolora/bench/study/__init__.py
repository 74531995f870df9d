"""The kit of the user study (Table 6): a questionnaire, its answers' shares and their agreement."""
