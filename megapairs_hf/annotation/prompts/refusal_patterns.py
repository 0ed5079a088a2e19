"""How models say that they describe nothing: the sentences, by kind, English first and then language by language.

Written for one sentence with single blanks, any case. What surprises: a description may see what such a sentence
lacks ("no photo is attached to the fridge", "I cannot see a dog in the second image"); the exceptions are in the
patterns, beside what they are exceptions of.
"""

from __future__ import annotations

IMAGE = r"(?:images?|pictures?|photos?|photographs?|attachments?|visuals?|files?)"
NOT = r"(?:do not|don['’]?t|did not|didn['’]?t|can ?not|can['’]?t|could not|couldn['’]?t|have not|haven['’]?t)"
UNABLE = r"(?:i['’]?m|i am|i was|we are|we['’]re) (?:currently )?(?:unable|not able|not capable)"
# what can be looked for in an image that is there
THERE = r"(?:(?!differ|chang|similar|between|\bin\b|\bof\b)[^.!?]){0,40}"
MESSAGE = r"(?:message|prompt|request|conversation|chat|input|question|query)"

# a sentence of Latin letters without any of these words matches none of the patterns; most descriptions have none
TRIGGERS = frozenset(
    """i we you your user my me please kindly sorry apologies afraid ai assistant policy policies guidelines request
    provided uploaded included shared received available attached loaded upload load opened processed accessed
    accessible empty blank failed unavailable occurred memory limit traceback server violates hope happy else
    instructions instruction sure certainly course okay ok hello hi hey great thank thanks absolutely unable
    openai openais ich leider tut entschuldigung bitte keine als je désolé désolée tant aucune veuillez siento
    lamento puedo como favor no qué posso sinto desculpe nenhuma não mi dispiace spiacente non nessun nessuna
    come carica allega carichi fornisci invia condividi het spijt helaas ik geen upload waarmee przykro
    przepraszam nie jako""".split()
)

NO_IMAGE = (
    rf"\b(?:no|any|without|without any) (?:(?:actual|visible|such|two|accompanying) )*{IMAGE}(?: (?:or"
    rf"|and) \w+)? (?:\w+ ){{0,4}}"
    r"(?:provided|uploaded|included|shared|received|available)\b",
    rf"\b(?:no|any) (?:(?:actual|visible|such|two) )*{IMAGE} (?:\w+ ){{0,4}}attached\b"
    rf"(?! to (?!(?:the|your|this|our) {MESSAGE}))",
    rf"\bno {IMAGE} (?:in|with|to) (?:your|this|our|compare)\b",
    rf"\b(?:i|we) {NOT} (?:\w+ )?(?:see|view|receive|received|have|find|access|open|load|display|been|detect"
    rf"|process|analy[sz]e)\b"
    rf"{THERE}\b{IMAGE}\b(?! (?:of|frame|album|book)\b)(?! (?:in|on) the (?!{MESSAGE}))",
    rf"{UNABLE} (?:to|of) (?:\w+ )?(?:see|view|access|process|analy[sz]e|open|display|seeing"
    rf"|viewing)\b{THERE}\b{IMAGE}\b",
    r"\b(?:you|user) (?:have )?(?:haven['’]?t|not|did not|didn['’]?t|forgot to|may have forgotten)\b[^.!?]{0,30}"
    rf"\b(?:provide|attach|upload|include|share|sen[dt])\w*\b[^.!?]{{0,30}}\b{IMAGE}\b",
    rf"\b{IMAGE} (?:(?:that )?you \w+ )?(?:(?:did|do|does|was|were|is|are|has|have|could|can) ?(?:not|n['’]t)"
    rf"|cannot|failed to) "
    r"(?:be |been )?(?:load|upload|provided|included|available|come through|received|accessible|opened"
    r"|processed|accessed)",
    r"\b(?:please|kindly|could you|can you|would you|you can|once you|if you) [^.!?]{0,40}"
    rf"\b(?:upload|re-?upload|provide|share|attach|resend|send)\b(?! me\b| an? )[^.!?]{{0,40}}\b{IMAGE}\b",
    r"\bi['’]?(?:m| am) (?:just |only )?a text[- ](?:based|only) |\bas a text[- ](?:based|only) ",
    # Chinese, Japanese, Korean
    r"(?:没有|没|未|並未|并未|沒有)(?:能)?(?:看到|收到|提供|上传|附上|发送|上傳).{0,8}(?:图|圖|照片)(?!.{0,6}(?:里|中))",
    r"(?:图|圖|照)[片像]?.{0,6}(?:未|没有|没|无法|無法)(?:能|被|成功)*(?:上传|加载|显示|提供|附上)",
    r"(?:无法|不能|無法)(?:直接)?(?:查看|看到|访问|处理|打开|看見).{0,6}(?:图|圖|照片)",
    r"[请請](?:您|你)?(?:先|重新)?(?:上传|提供|发送|分享|附上|上傳).{0,14}(?:图|圖|照片)",
    r"画像[がをは].{0,6}(?:添付され|提供され|確認でき|見ることができ|表示でき)(?:てい?)?(?:ない|ません)",
    r"画像を.{0,10}(?:アップロード|添付|提供|送)って?し?て?ください",
    r"이미지[가를은]?.{0,12}(?:첨부되지|제공되지|볼 수 없|확인할 수 없)",
    r"이미지를.{0,10}(?:업로드|첨부|제공)해 ?(?:주|줘)",
    # German, French, Spanish, Portuguese, Italian, Dutch, Polish, Russian, Arabic, Hindi
    r"\bkeine (?:bild|foto)\w*.{0,40}(?:angehängt|hochgeladen|bereitgestellt|erhalten|beigefügt|mitgeschickt)",
    r"\bich (?:kann|sehe)\b.{0,20}\bkeine (?:bild|foto)\w*|\bbitte\b.{0,40}(?:bild|foto)\w*.{0,30}(?:\bhoch\b"
    r"|hochladen|bereitstellen|\bbereit\b|senden|anhängen)",
    r"\baucune (?:image|photo).{0,40}(?:jointe|fournie|téléchargée|reçue|transmise)|\bveuillez (?:télécharger"
    r"|fournir|joindre|partager|envoyer|importer) .{0,30}(?:image|photo)",
    r"\bno (?:se )?(?:ha|han|he|has|veo|recib\w+|hay|puedo ver) .{0,20}(?:imagen|imágenes|fotos?)\b(?! en la)",
    r"\bpor favor,? (?:sub|adjunt|proporcion|compart|env|anex|fornec|carr?eg).{0,30}(?:imagen|imágenes|imagem"
    r"|imagens|fotos?)\b",
    r"\b(?:nenhuma|não há|não recebi) .{0,20}(?:imagem|imagens|foto).{0,30}(?:anexad|fornecid|enviad|recebid)",
    r"\bnessuna? (?:immagine|foto).{0,30}(?:allegat|fornit|caricat|ricevut)|(?:caric|alleg|fornisc|fornire|invi"
    r"|condivid)\w*.{0,30}immagin",
    r"\bgeen (?:afbeelding|foto)\w*.{0,30}(?:bijgevoegd|ontvangen|geüpload|meegestuurd)|\bupload .{0,20}afbeelding",
    r"\bnie (?:widzę|otrzymałe?m|otrzymałam|załączono|dołączono|przesłano)\b.{0,30}(?:obraz|zdję)",
    r"изображени\w*.{0,20}не (?:был\w* )?(?:прикреплен|загружен|предоставлен|приложен)|не вижу .{0,20}изображени",
    r"(?:загрузите|прикрепите|предоставьте|отправьте).{0,30}изображени",
    r"(?:تحميل|إرفاق|تقديم|رفع) .{0,10}(?:الصور|صور)|(?:छवि|तस्वीर|चित्र)\S*.{0,20}(?:अपलोड|संलग्न|प्रदान)",
)
EMPTY = (
    rf"\byour (?:last )?{MESSAGE}\b[^.!?]{{0,40}}\b(?:empty|blank|incomplete|cut off|come through)\b",
    r"\b(?:empty|blank) (?:message|prompt|request|query)\b",
    r"\byou (?:did not|didn['’]?t|haven['’]?t|have not) \w+ (?:\w+ )?(?:question|message|prompt|request|anything)\b",
    r"\b(?:how|what) (?:can|may|could) i (?:help|assist|do for)\b|\bwhat would you like (?:me )?to\b",
    r"[您你](?:的)?(?:消息|信息|输入|问题|訊息).{0,6}(?:为空|是空|空白)|有什么(?:我)?(?:可以|能)(?:帮|为)",
    r"何かお手伝い|무엇을 도와|메시지가 비어|\bwie kann ich (?:ihnen|dir) helfen|\bcomment puis-je vous aider",
    r"\ben qué puedo ayudar|\bcomo posso (?:te |lhe )?ajudar|\bcome posso aiutar|чем (?:я )?могу (?:вам )?помочь",
    r"\bwaarmee kan ik|\bw czym mogę",
)
REFUSAL = (
    r"^\W*(?:(?:oh|well|hmm|unfortunately|but|ah|hello|hi)\W+)*(?:i['’]?m|i am) (?:(?:really|very|so|truly"
    r"|deeply|terribly) )?(?:sorry|afraid)\b",
    r"^\W*sorry\W+(?:but )?(?:i|we|this|that|your)\b|^\W*(?:my )?apologies\b|^\W*(?:i"
    r"|we) (?:must )?(?:apologi[sz]e|regret|decline)\b",
    r"\bi (?:can ?not|can['’]?t|won['’]?t|will not|could not|couldn['’]?t|must decline to) (?:\w+ly )?(?:assist"
    r"|help(?! but)|comply|fulfil+"
    r"|provide|do that|answer|continue|create|generate|discuss|engage|support|respond|complete|share|describe"
    r"|compare|identify)\b",
    rf"{UNABLE} (?:to|of) (?:\w+ )?(?:assist|help|comply|fulfil+|provide|answer|continue|generate|discuss"
    rf"|describe|compare|identify|respond)",
    r"\b(?:i['’]?m|i am) not (?:comfortable|permitted|allowed|programmed|designed)\b",
    r"\bas an? (?:\w+ )?(?:ai|artificial intelligence|language model|assistant)\b|\bi['’]?m (?:just "
    r"|only )?an? (?:ai|language model)\b",
    r"\b(?:content|usage|safety|openai['’s]*|my|our) (?:policy|policies|guidelines)\b",
    r"\bviolat\w+\b[^.!?]{0,40}\b(?:policy|policies|guidelines|terms)\b",
    r"\b(?:this|your|that) request (?:can ?not|can['’]?t|could not|was|has been|is not|violates)\b",
    # Chinese, Japanese, Korean
    r"^\W*(?:非常|很|十分)?(?:抱歉|对不起|對不起|遗憾)|我(?:无法|不能|無法)(?!.{0,4}(?:分辨|看出|判断))",
    r"作[为為]一?[个個]?(?:AI|人工智能|人工智慧|語言模型|语言模型|大模型)",
    r"^\W*(?:大変)?申し訳|^\W*(?:すみません|ごめんなさい)|お(?:手伝い|答え)できません|(?:AI|言語モデル)として",
    r"^\W*죄송|(?:도와드릴|답변할|제공할) 수 없",
    # German, French, Spanish, Portuguese, Italian, Dutch, Polish, Russian, Arabic, Hindi
    r"^\W*(?:es )?tut mir (?:sehr )?leid|^\W*entschuldigung|\bleider (?:kann|darf|konnte) ich\b|\bals (?:ki"
    r"|sprachmodell)\b",
    r"\bich kann (?:ihnen|dir|dabei|das|diese anfrage)\b.{0,40}\bnicht\b",
    r"^\W*(?:je suis )?(?:vraiment )?désolée?\b|\bje ne (?:peux|suis) pas\b|\ben tant qu['’e] ?(?:ia"
    r"|intelligence|modèle|assistant)",
    r"^\W*(?:lo siento|lo lamento|lamento)\b|\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje)\b",
    r"\bno puedo (?:ayud|asist|proces|acced|proporcion|cumpl|analiz|describ)",
    r"^\W*(?:sinto muito|(?:me )?desculpe)\b|\bcomo (?:uma? )?(?:inteligência artificial|modelo de linguagem)\b",
    r"\bnão (?:posso|consigo) (?:ajud|ver|visualiz|acess|fornec|descrev|atend)",
    r"^\W*(?:mi dispiace|spiacente)\b|\bnon (?:posso|sono in grado)\b|\bcome (?:ia|intelligenza artificiale"
    r"|modello linguistico)\b",
    r"^\W*(?:het )?spijt me\b|\bhelaas kan ik\b|\bik kan (?:je|u|daar|dat|geen)\b|\bals (?:ai|taalmodel)\b",
    r"^\W*(?:przykro mi|przepraszam)\b|\bnie mogę (?:pomóc|spełnić|zobaczyć|wyświetlić|opisać)|\bjako (?:ai"
    r"|model językowy)\b",
    r"^\W*(?:извините|простите|к сожалению,? я)|\bя не могу (?:помочь|выполнить|увидеть|видеть|просм"
    r"|предоставить|описать)",
    r"\bкак (?:ии|языковая модель|искусственный интеллект)\b|^\W*(?:عذر|آسف|أعتذر|نأسف)|لا (?:أستطيع|يمكنني)",
    r"^\W*(?:क्षमा|माफ़? ?(?:करें|कीजिए))",
)
TALK = (
    r"\b(?:let me know|feel free|hope (?:this|that|these|it) helps?|is there anything else)\b",
    r"\b(?:i['’]d|i would|i['’]ll|i will) (?:be )?(?:happy|glad|more than happy|delighted|gladly"
    r"|love to (?:help|assist))\b|\bhappy to help\b",
    r"\bi can (?:help|assist|only|certainly|try to)\b|\bi['’]ll (?:do my best|help|compare|describe|analy[sz]e)\b",
    r"^\W*(?:please|could you|can you|would you) (?:\w+ ){0,3}(?:clarify|rephrase|try again|specify|confirm)\b",
    r"^\W*(?:please|could you|can you|would you) (?:\w+ ){0,3}(?:provide|describe|give|tell)\b[^.!?]{0,40}"
    r"\b(?:descriptions?|details?|information|context|input|link|text|question)\b|\bplease describe (?:them|it)\b",
    r"^\W*if you (?:can|could|provide|upload|share|describe|let)\b[^.!?]{0,40}\b(?:i|them|descriptions?"
    r"|details?|know)\b",
    r"^\W*if you (?:have|need|want|would like)\b[^.!?]{0,30}\b(?:questions?|help|assistance|else|further"
    r"|any other|me to)\b",
    r"^\W*(?:would|do) you (?:like|want) me to\b",
    r"^\W*(?:hello|hi|hey|sure|certainly|of course|okay|ok|great|thank you|thanks|absolutely)(?: there| thing)?\W*$",
    r"^\W*(?:sure|certainly|of course|absolutely)\W+(?:i|here|let)\b[^:]*$|^\W*here (?:are"
    r"|is)\b[^.!?]{0,60}\binstructions?\W*$",
)
BROKEN = (
    r"^\W*(?:internal server error|traceback \(most|\w*(?:error|exception)\s?:|(?:generation|request"
    r"|inference) failed\b)",
    r"^\W*(?:an? (?:\w+ )?error (?:has )?occurred|cuda out of memory|out of memory|service unavailable|rate limit)",
)
# how no sentence ends: with a comma, dots, or a word that something must follow
DANGLING = (
    r"[,:;({\[–—-]",
    r"\.\.\.?|…",
    r"\b(?:an?|the|of|with|and|or|but|from|at|in|to|is|are|was|were|has|have|while|whereas|its|their|into|than)",
    r"\b(?:shows?|showing|depicts?|features?|contains?)",
    r"\b(?:der|die|das|ein|eine|und|oder|mit|von|ist|sind|zeigt|zeigen|während|le|les|une|des|du|et|avec|dans"
    r"|est|sont|montre|montrent)",
    r"\b(?:el|los|las|una|del|y|con|es|muestra|muestran|il|gli|uno|e|di|mostra|mostrano|o|os|um|uma|com|são|het"
    r"|een|en|van|zijn|toont)",
    r"\b(?:и|в|на|с|это)",
)
