"""Sample texts for tokenizers: languages, code, numbers, blanks, emoji, control characters."""

__all__ = ["MARKED", "PLAIN"]

PLAIN = {
    "english": "The quick brown fox doesn't jump over the dog's back; I'LL — “quoted” naïve café.",
    "spaces": "two  spaces\n\n\tTab\r\nCRLF   \n  indented\n   ",
    "code": "def getElementById(self, x_1: int) -> XMLHttpRequest:\n\treturn {**a, 'k': 0x1F}",
    "numbers": "1234567 3.14159 1,000,000 2^10 ½ ² Ⅷ ٣٤ 1e-9",
    "camel": "iPhone macOS eBay LaTeX McDonald's fooBAR'S ǅungla éÉlan straßeÜber КамелКейс",
    "chinese": "月之暗面科技有限公司发布了Kimi K2模型，参数1万亿。你好，世界！《红楼梦》〇々　全角",
    "japanese": "人々は日本語のテストを書く。カタカナ、ひらがな。ﾊﾝｶｸ 東京タワー２０２４年",
    "korean": "안녕하세요 세계! 모든 인간은 태어날 때부터 자유로우며",
    "arabic": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق",
    "emoji": "Hi 👋🏽👨‍👩‍👧‍👦 🇩🇪🇨🇳 🙂🙂 ✅ done",
    "mixed": "用Python写hello_world()函数, then 运行 it: ∑x² ≤ ½·π ∈ ℝ",
    "german": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. GRÖẞE, Straße",
    "french": "Tous les êtres humains naissent libres et égaux; l'été, c'est où ? « Cœur »",
    "spanish": "¿Todos los seres humanos nacen libres? ¡Sí, mañana!",
    "polish": "Wszyscy ludzie rodzą się wolni i równi; zażółć gęślą jaźń",
    "russian": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "ukrainian": "Всі люди народжуються вільними і рівними у своїй гідності. Ґанок, їжа",
    "greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.",
    "hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם",
    "persian": "تمام افراد بشر آزاد به دنیا می‌آیند و حیثیت",
    "vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm",
    "turkish": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İstanbul ığdır",
    "armenian": "Բոլոր մարդիկ ծնվում են ազատ",
    "georgian": "ყველა ადამიანი იბადება",
    "amharic": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብር",
    "traditional chinese": "人人生而自由，在 尊嚴 和權利上一律 平等。",
    "controls": "a\x01b\x02 \x7f\x1b[0m\x0b\x0c\x1c\x1f\x85\xa0\u2028\u2029\u200b\ufeff x\x00y",
}
# Words with combining marks, which llama.cpp splits unlike the model's tokenizer.
MARKED = {
    "hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में स्वतन्त्रता और समानता प्राप्त है।",
    "thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "bengali": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "tamil": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்",
    "variation selector": "❤️\\u200d👨",
}
