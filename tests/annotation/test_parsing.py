"""What is no description, and what is one although it looks like none."""

import json
from importlib import resources

import pytest

from megapairs_hf.annotation.filters import filter_instructions
from megapairs_hf.annotation.prompts.parsing import parse_describe
from megapairs_hf.annotation.prompts.refusals import is_talk, reason_against_description
from megapairs_hf.core.errors import ResponseParseError

LONG = (
    "Both images show a woman in a long dress on a stone bridge over a narrow canal. In the target image the dress is"
    " red instead of blue, it has begun to rain, and a small white boat passes under the bridge."
)
USELESS = {
    "refusal": [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, I can’t help with that.",
        "I am so sorry, but as a language model I am not able to do this.",
        "Sorry, I can't comply with that.",
        "I cannot provide a description of these images.",
        "I apologize, but I'm unable to assist with comparing people.",
        "My apologies, this goes against our content policy.",
        "I'm not comfortable describing this content.",
        "As an AI assistant, I do not describe real people.",
        "Unfortunately, I'm afraid I can't do that.",
        "This request violates the usage guidelines.",
        "I'm sorry, but I cannot help with comparing these. If you have other questions about objects, colors or"
        " scenery in general, feel free to ask, and I would be happy to help you with those at any time.",
        "抱歉，我无法协助处理这个请求。",
        "对不起，我不能回答这个问题。",
        "作为一个人工智能语言模型，我无法完成这个任务。",
        "申し訳ありませんが、そのリクエストにはお答えできません。",
        "죄송하지만 요청하신 내용을 도와드릴 수 없습니다.",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Leider kann ich Ihnen dabei nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, no puedo ayudar con eso.",
        "Sinto muito, não posso ajudar com isso.",
        "Mi dispiace, non posso aiutarti.",
        "Het spijt me, daar kan ik niet mee helpen.",
        "Przykro mi, nie mogę pomóc.",
        "Извините, я не могу помочь с этим.",
        "عذرًا، لا أستطيع المساعدة في ذلك.",
        "क्षमा करें, मैं इसमें मदद नहीं कर सकता।",
    ],
    "no_image_seen": [
        "It seems that no images were attached. Please upload the two images so that I can compare them.",
        "I don't see any images in your message. Could you please provide them?",
        "I cannot see the images you mentioned.",
        "I'm unable to view images directly, but I can help if you describe them.",
        "There are no images provided, so a comparison cannot be made.",
        "As a text-based AI, I can't look at pictures. Please describe them to me.",
        "You haven't provided any images. Please share the two photos.",
        "Sure! Please upload the two images you'd like me to compare.",
        "The image failed to load. Please try again.",
        "Unfortunately the images could not be loaded.",
        "No image was included with your request.",
        "I have not received any photos from you.",
        "It looks like you forgot to attach the images.",
        "I'm sorry, but I don't have access to the images. Please provide a description of both images.",
        "没有看到您上传的图片，请重新上传两张图片。",
        "抱歉，我无法查看图片。",
        "请提供两张图片，以便我进行比较。",
        "画像が添付されていません。画像をアップロードしてください。",
        "이미지가 첨부되지 않았습니다. 이미지를 업로드해 주세요.",
        "Es wurden keine Bilder angehängt. Bitte laden Sie die Bilder hoch.",
        "Aucune image n'a été jointe. Veuillez télécharger les deux images.",
        "No se han adjuntado imágenes. Por favor, sube las dos imágenes.",
        "Nenhuma imagem foi anexada. Por favor, envie as imagens.",
        "Nessuna immagine è stata allegata.",
        "Er zijn geen afbeeldingen bijgevoegd.",
        "Nie widzę żadnych obrazów.",
        "Изображения не были прикреплены. Пожалуйста, загрузите изображения.",
        "يرجى تحميل الصور.",
    ],
    "empty_message": [
        "It seems like your message is empty. How can I assist you today?",
        "Hello! How can I help you today?",
        "Your message appears to be blank. Could you try again?",
        "It looks like your prompt got cut off.",
        "You have not entered a question.",
        "您的消息似乎为空。有什么我可以帮您的吗？",
        "Bonjour ! Comment puis-je vous aider ?",
        "Hallo! Wie kann ich Ihnen helfen?",
    ],
    "error_text": [
        "Generation failed: Model.__call__() missing 1 required positional argument: 'pixel_values'",
        "Internal Server Error",
        "Error: CUDA out of memory. Tried to allocate 2.00 GiB",
        "ValueError: too many values to unpack (expected 2)",
        "Traceback (most recent call last): File x",
        "An unexpected error occurred while the request was processed.",
    ],
    "no_description": [
        "Sure!",
        "Of course, I'd be happy to help with that!",
        "Certainly! I'll compare them for you.",
        "Let me know if you need anything else.",
        "ok",
    ],
    "unfinished": [
        "The first picture shows",
        "Both images depict a dog, while the",
        "In the target image, the woman is holding a",
        "The images share the same background, but...",
        "Both images show two cats on a sofa,",
        "Both images",
        "Beide Bilder zeigen",
    ],
    "too_short": ["Yes.", "Red", "…"],
}
GOOD = [
    LONG,
    "They differ.",
    "A dog jumps. The other one sleeps.",
    "Both are flat colors: 64x32 (0, 0, 0); 64x32 (20, 0, 0). Seed 12.",
    "Both images show a dog. The second is larger",
    "A red car instead of a blue one",
    "Both show shop doors. The second has a sign that says SORRY, WE ARE CLOSED.",
    "The sign in the first image says “I'm sorry”, the one in the second says “Thank you”.",
    "No photo is attached to the fridge in the second image; in the first there are three.",
    "In the target image no picture hangs on the wall, and a photograph of a ship is on the table.",
    "Both images show a desk. I cannot see a photo frame in the second image.",
    "I can't see any difference between the images except for the color of the sky, which is darker.",
    "I see two dogs in both images. In the second I notice snow on the ground.",
    "As you can see, both images show a church; the second was taken at night.",
    "The man cannot see the dog behind him. In the second image the dog is gone.",
    "Both show a help desk. In the target image a woman asks how she can help.",
    "The file cabinet is closed in the first image and open in the second.",
    "Both show a mailbox. The one in the target image is empty.",
    "Both show an error message on a screen; in the second it is in German.",
    "A policeman writes a ticket; in the second image he reads the parking policy on a board.",
    "The lower part of the tower is not visible in the second image.",
    "A message in a bottle lies on the beach; the second bottle is empty.",
    "Two children share a book. In the target image they share an umbrella.",
    "The photo booth is open in the first image, and people upload their pictures at the screen in the second.",
    "You would like the second house better: it has a garden.",
    "两张图片都显示一只狗在草地上，第二张图片中的狗在奔跑。",
    "两张图片中都没有人，第二张图片的天空更暗。",
    "どちらの画像にも犬が写っています。二枚目では犬が走っています。",
    "두 이미지 모두 개를 보여줍니다. 두 번째 이미지에서는 개가 달립니다.",
    "Beide Bilder zeigen einen Hund. Auf dem zweiten sind keine Menschen zu sehen, und es schneit.",
    "Les deux images montrent un chien ; dans la seconde, aucune personne n'est visible.",
    "Ambas imágenes muestran un perro. En la segunda no hay personas.",
    "Entrambe le immagini mostrano un cane, ma nella seconda nevica.",
    "На обоих изображениях собака; на втором она не видна целиком.",
    "I'm sorry, but I can't identify the woman. " + LONG,
    "I cannot see who the people are. " + LONG,
    "Sure! " + LONG,
    LONG + " Let me know if you need more detail.",
]


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for reason, texts in USELESS.items() for text in texts], ids=str
)
def test_what_is_no_description_is_rejected_with_its_kind(reason, text):
    assert reason_against_description(text) == reason
    with pytest.raises(ResponseParseError) as error:
        parse_describe(f"<think>Hm. {LONG}</think>\n{text}")
    assert error.value.reason == reason


@pytest.mark.parametrize("text", GOOD)
def test_what_is_one_stays(text):
    assert reason_against_description(text) == ""


def test_the_descriptions_of_the_few_shot_examples_stay():
    package = resources.files("megapairs_hf.annotation.prompts")
    examples = json.loads(package.joinpath("few_shot_examples.json").read_text(encoding="utf-8"))
    assert {each["description"]: reason_against_description(each["description"]) for each in examples} == {
        each["description"]: "" for each in examples
    }
    instructions = [text for each in examples for text in each["instructions"]]
    assert [text for text in instructions if is_talk(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "Let me know if you would like more!",
        "I hope this helps.",
        "I'm sorry, but I can't assist with that.",
        "Please provide the description so that I can help.",
        "Of course! I'd be happy to help.",
    ],
)
def test_a_sentence_to_whoever_asked_is_no_instruction(text):
    assert filter_instructions([text], min_words=2, max_words=60) == ([], {"talk": 1})


@pytest.mark.parametrize(
    "text",
    [
        "I want the same dog in the snow",
        "Can you show me this room at night?",
        "please make it red",
        "could you find one without people",
        "Show me this, but with a closed sign that says sorry",
        "is there one with two cats",
        "I'd like it in blue instead",
        "I'd love to see it at night",
        "if you have the same dress in red",
        "do you want it in green",
        "please provide one with a garden",
        "can you send me a picture of it in winter",
        "can you paste the photo onto a beach",
        "veuillez montrer la même image en noir et blanc",
        "por favor, muestra la imagen con nieve",
        "bitte das Bild im Hochformat",
        "per favore, la stessa immagine di notte",
    ],
)
def test_a_wish_is_an_instruction(text):
    assert filter_instructions([text], min_words=2, max_words=60)[0] == [text]
