from spaces_server.policy.tokens import TOKEN_BYTES, new_token


def test_a_token_is_taken_for_no_option() -> None:
    drawn = iter([b"\xf8" + bytes(8), b"\xfb" * 9, b"\xff" * 9])
    assert new_token(lambda size: next(drawn)[:size]) == "____________"


def test_a_token_has_twelve_characters_that_fit_into_a_link() -> None:
    sizes: list[int] = []
    assert new_token(lambda size: sizes.append(size) or bytes(size)) == "A" * 12
    assert sizes == [TOKEN_BYTES]
