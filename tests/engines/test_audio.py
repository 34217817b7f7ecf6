from tests.engines.audio_files import make_sound
def test_x(): assert make_sound(1,8000).shape==(1,8000)
