"""The one exception that means: the user asked for something that cannot be."""


class UserError(Exception):
    """A mistake of the user, told in one sentence that names what is wrong and what is valid.

    Programs print the sentence without a traceback and exit with code 2.
    """
